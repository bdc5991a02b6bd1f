"""A search that is killed at any write into its study, and started again, is the one that was not disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages._cached_storage import _CachedStorage

from mcrnn.search.study import state_of
from mcrnn.search.tune_adapter import StudySearcher
from tests.support.studies import ASHA, epochs_of, run_part, search, study_in

WRITES = (
    "create_new_study",
    "set_study_user_attr",
    "create_new_trial",
    "set_trial_param",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_trial_intermediate_value",
    "set_trial_state_values",
)
"""Methods of a storage that write."""
EARLIER = [0.5, 0.6, 0.4, 0.45]
"""Errors of the trials of the search from which others learn."""


class Killed(BaseException):
    """What a storage raises in place of a write."""


class Kill:
    """Lets a write into any study, and none after it, never happen."""

    def __init__(self) -> None:
        self.left: int | None = None
        """Writes until then; None for no kill."""

    def count(self) -> None:
        if self.left is not None:
            self.left = max(0, self.left - 1)
            if self.left == 0:
                raise Killed


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Kill:
    found = Kill()

    def counted(method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            found.count()
            return method(*arguments, **options)

        return call

    for storage in (JournalStorage, _CachedStorage):
        for name in WRITES:
            monkeypatch.setattr(storage, name, counted(getattr(storage, name)))
    return found


def earlier_study(folder: Path) -> optuna.Study:
    """A study with trials that were trained to different epochs."""
    folder.mkdir()
    plan = search(trials=len(EARLIER), asha=ASHA)
    epochs_of(folder, plan, EARLIER, restart=False)
    study = study_in(folder, plan)
    StudySearcher(study, plan).conclude()
    study.study_name = "earlier"
    return study


def content_of(study: optuna.Study) -> list[tuple[Any, ...]]:
    """All that a search learns from its trials, in their order."""
    return [
        (t.number, state_of(t), t.params, t.distributions, t.last_step, t.value, t.user_attrs.get("from"))
        for t in study.get_trials()
    ]


@pytest.mark.parametrize("scheduler", ["asha", pytest.param("median", marks=pytest.mark.soak)])
def test_kill_between_any_two_writes_changes_neither_values_nor_decisions(
    tmp_path: Path, kill: Kill, scheduler: str
) -> None:
    errors, median = [0.5, 0.6, 0.4, 0.9], {"grace_epochs": 2, "grace_trials": 1}
    budgets = [3, 4]  # the second one lets a trial go on that the end of the first one has stopped
    earlier = earlier_study(tmp_path / "earlier")
    copies = len(EARLIER)

    def run(folder: Path, write: int | None) -> tuple[list[tuple[Any, ...]], bool]:
        folder.mkdir()
        killed, reached, kill.left = False, [0] * (copies + len(errors)), write
        for trials in budgets:
            plan, ended = search(scheduler=scheduler, trials=trials, asha=ASHA, median=median), False
            while not ended:
                try:
                    searcher = StudySearcher(study_in(folder, plan, [earlier]), plan)
                    while isinstance(proposal := searcher.suggest("t"), dict):
                        number = proposal["number"]
                        error = errors[number if number < copies else number - copies]
                        reached[number] = run_part(searcher, proposal, error, reached[number], 4)
                    ended = searcher.conclude() >= 0
                except Killed:
                    killed, kill.left = True, None
        kill.left = None
        return content_of(study_in(folder, plan)), killed

    expected, _ = run(tmp_path / "undisturbed", None)
    assert {state.name for _, state, *_ in expected} == {"COMPLETE", "PRUNED"}
    write, killed = 0, True
    while killed:
        write += 1
        found, killed = run(tmp_path / str(write), write)
        assert found == expected, f"killed at write {write}"
    assert write > 40


@pytest.mark.parametrize(
    ("storage", "cover", "warm"),
    [
        ("journal", "model.architecture", True),
        ("journal", "model.architecture", False),
        ("journal", None, True),
        ("database", "model.architecture", True),
    ],
)
def test_kill_while_a_study_is_made_loses_nothing_of_it(
    tmp_path: Path, kill: Kill, storage: str, cover: str | None, warm: bool
) -> None:
    earlier = [earlier_study(tmp_path / "earlier")] if warm else []

    def made(name: str, writes: list[int]) -> list[tuple[Any, ...]]:
        folder = tmp_path / name
        folder.mkdir()
        url = None if storage == "journal" else f"sqlite:///{folder}/study.db"
        plan = search(cover=cover, storage=url)
        for write in writes:
            kill.left = write
            with pytest.raises(Killed):
                study_in(folder, plan, earlier)
        kill.left = None
        study_in(folder, plan, earlier)
        return content_of(study_in(folder, plan, earlier))

    expected = made("undisturbed", [])
    trials = 3 * (cover is not None) + len(EARLIER) * warm
    assert len(expected) == trials
    for write in range(1, trials + 2):  # the first write makes the study
        assert made(f"killed at {write}", [write]) == expected
    # killed again at the second trial that the second start adds; making the study is a write even if it is there
    assert made("killed twice", [3, 3]) == expected


def test_trials_that_ended_between_two_starts_of_a_take_up_are_copied_once(tmp_path: Path, kill: Kill) -> None:
    """The earlier search goes on while the new one is killed: its first trial ends last."""
    for name in "ab":
        (tmp_path / name).mkdir()
    plan = search(trials=3, scheduler="none", cover=None)
    earlier = study_in(tmp_path / "a", plan)
    searcher = StudySearcher(earlier, plan)
    for trial_id in "012":
        searcher.suggest(trial_id)
    for trial_id in "12":
        searcher.on_trial_complete(trial_id, {"epoch": 4, "best": 0.5})
    kill.left = 3  # after the study and one copy
    with pytest.raises(Killed):
        study_in(tmp_path / "b", plan, [earlier])
    kill.left = None
    searcher.on_trial_complete("0", {"epoch": 4, "best": 0.4})
    copies = study_in(tmp_path / "b", plan, [earlier]).get_trials()
    assert sorted(t.value or 0 for t in copies) == [0.4, 0.5, 0.5]
    assert len({str(t.params) for t in copies}) == 3
