"""BOHB and MOBSTER of Syne Tune in the replay of searches; without Syne Tune this is skipped."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from benchmarks.curves.blackbox import Curve
from benchmarks.curves.peers import PEERS
from benchmarks.curves.simulation import Job, simulate
from benchmarks.curves.syne_tune_peers import SYNE_TUNE_PEERS, SyneTune, missing_peers, values_of
from mcrnn.config.loading import load_search
from mcrnn.config.paths import Values
from mcrnn.config.space import Search
from mcrnn.training.session import PENALTY

pytest.importorskip("syne_tune")

NS = Path(__file__).parent.parent.parent / "search_spaces/ns.yaml"
EPOCHS = 9


class Bowl:
    """Errors that are small near one learning rate; trainings without a tight clip diverge in the second epoch."""

    epochs = EPOCHS

    def curve(self, values: Values) -> Curve:
        rate = values["train.learning_rate"]
        errors = 0.1 + np.log10(rate / 2e-3) ** 2 + 1 / np.arange(1, EPOCHS + 1)
        if values["train.gradient_clip"] > 1:
            errors[1:] = PENALTY
        return Curve(errors, errors, np.ones(EPOCHS))


@pytest.fixture(scope="module")
def search() -> Search:
    return load_search(str(NS), ["data.store=recorded"])


@pytest.fixture(scope="module", params=SYNE_TUNE_PEERS)
def peer(request: pytest.FixtureRequest) -> str:
    if request.param in missing_peers():
        pytest.skip(f"this release of Syne Tune has no {request.param}")
    return request.param


class Spy:
    """Passes on what the simulation asks of a searcher, and keeps the jobs and how each ended."""

    def __init__(self, player: SyneTune) -> None:
        self.player = player
        self.jobs: list[Job] = []
        self.ends: dict[str, tuple[int, bool]] = {}

    def next_job(self) -> Job | None:
        job = self.player.next_job()
        if job is not None:
            self.jobs.append(job)
        return job

    def epoch_ended(self, job: Job, epoch: int, error: float, epochs: int) -> bool:
        return self.player.epoch_ended(job, epoch, error, epochs)

    def job_ended(self, job: Job, epoch: int, error: float, *, diverged: bool, epochs: int) -> None:
        self.ends[job.trial] = epoch, diverged
        self.player.job_ended(job, epoch, error, diverged=diverged, epochs=epochs)


def replay(search: Search, peer: str) -> Spy:
    spy = Spy(PEERS[peer](search, 0, EPOCHS, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulate(spy, Bowl(), workers=4, seconds=10)
    return spy


@pytest.fixture(scope="module")
def replayed(search: Search, peer: str) -> Spy:
    return replay(search, peer)


def test_a_search_stops_trials_at_rungs_and_outlives_those_that_diverge(replayed: Spy) -> None:
    ends = {epoch for epoch, diverged in replayed.ends.values() if not diverged}
    assert ends <= {1, 3, EPOCHS}
    assert {1, EPOCHS} <= ends
    assert any(diverged for _, diverged in replayed.ends.values())
    assert len(replayed.jobs) > 8
    assert all(job.first == 1 and job.last is None for job in replayed.jobs)


def test_every_configuration_is_one_of_the_space(search: Search, replayed: Spy) -> None:
    for job in replayed.jobs:
        assert list(job.values) == list(search.space)
        for path, value in job.values.items():
            entry = search.space.active_entry(path, job.values)
            assert entry is not None
            if entry.choice is not None:
                assert value in entry.choice
            else:
                low, high = entry.bounds
                assert low <= value <= high
                assert entry.step is None or (value - low) % entry.step == 0


def test_the_same_seed_gives_the_same_search(search: Search, peer: str, replayed: Spy) -> None:
    assert [job.values for job in replay(search, peer).jobs] == [job.values for job in replayed.jobs]


def test_a_bound_that_names_a_field_is_a_share_of_the_range(search: Search) -> None:
    values = search.space.completed({})
    drawn = values | {"data.sequence_length": 20}
    steps = [
        values_of(search.space, drawn | {"train.teacher_forcing_steps": share})["train.teacher_forcing_steps"]
        for share in (0.0, 0.5, 1.0)
    ]
    assert steps == [5, 13, 20]
