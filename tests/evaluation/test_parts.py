"""Evaluations that are scored part by part: the same figures, and after an interruption only what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from mcrnn.data.store import FieldStore
from mcrnn.evaluation import parts
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.kept_scores import MODEL, Forecasts
from mcrnn.evaluation.metrics import ARRAYS
from mcrnn.evaluation.parts import Scoring, parts_of, score_here, score_in_parts
from mcrnn.evaluation.scoring import score
from mcrnn.evaluation.spread import spread_by_step
from mcrnn.models import trained_model
from mcrnn.models.ensemble import Ensemble
from mcrnn.storage.local import LocalFolder
from tests.support.registered_models import describe, save


class Interrupting:
    """Scores parts backwards, and is interrupted after some of them.

    Args:
        most: number of parts that are scored.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.scored: list[range] = []

    def __call__(
        self,
        scoring: Scoring,
        evaluation_set: EvaluationSet,
        parts: Sequence[range],
        on_windows: Callable[[int], None],
    ) -> Iterator[tuple[range, Forecasts]]:
        for found in score_here(scoring, evaluation_set, parts[::-1], on_windows):
            if len(self.scored) == self.most:
                raise KeyboardInterrupt
            self.scored.append(found[0])
            yield found


def ensemble(root: Path) -> Ensemble:
    """Two models with random weights, in float64: in float32, a batch is rounded otherwise on some processors."""
    folders = [save(root / f"m{seed}", *describe(root), seed=seed) for seed in (1, 2)]
    found = Ensemble.of([trained_model.load(folder) for folder in folders], [2, 1], ["a", "b"])
    found.network.double()
    return found


def test_parts_follow_from_the_number_of_windows() -> None:
    assert parts_of(70) == [range(32), range(32, 64), range(64, 70)]
    many = parts_of(100_000)
    assert len(many) <= parts.MOST_PARTS
    assert {len(part) for part in many[:-1]} == {416}
    assert [index for part in many for index in part] == list(range(100_000))


def test_interrupted_evaluation_scores_what_is_left_and_gives_the_bits_of_one_in_one_go(
    root: Path, store: FieldStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "WINDOWS_OF_PART", 1)
    monkeypatch.setattr("mcrnn.console.QUIET_SECONDS", -1.0)
    model = ensemble(root)
    evaluation_set = EvaluationSet.of(store, model.config.data, warm_up=4, horizon=6)
    for scoring in (Scoring(1, model, np.array([2.0])), Scoring(1)):
        cache = LocalFolder(root / f"cache-{len(scoring.names)}")
        with pytest.raises(KeyboardInterrupt):
            score_in_parts(scoring, evaluation_set, "k", cache=cache, score_parts=Interrupting(3))
        (cache.path / "k-00000002-00000003.npz").write_bytes(b"PK\3\4 damaged")
        rest = Interrupting(9)
        capsys.readouterr()
        found = score_in_parts(scoring, evaluation_set, "k", cache=cache, score_parts=rest, title="m")
        assert rest.scored == [range(2, 3), range(1)]
        assert capsys.readouterr().err.startswith("m: 2 of 4 windows")
        assert list(cache.sizes()) == ["k.npz"]
        whole = score_in_parts(scoring, evaluation_set, "k")
        # a process that was killed before it had deleted all parts has left the first one and others
        for part in parts_of(4)[::2]:
            (cache.path / f"k-{part.start:08d}-{part.stop:08d}.npz").touch()
        kept = score_in_parts(scoring, evaluation_set, "k", cache=cache, score_parts=Interrupting(0))
        assert list(cache.sizes()) == ["k.npz"]
        for name in scoring.names:
            for array in ARRAYS:
                expected = getattr(whole[name].scores, array)
                assert np.array_equal(getattr(found[name].scores, array), expected), array
                assert np.array_equal(getattr(kept[name].scores, array), expected), array
    of_model = score_in_parts(Scoring(1, model, np.array([2.0])), evaluation_set, "k")[MODEL]
    at_once, _ = score(model, evaluation_set)
    for array in ("squared", "variance", "power"):
        np.testing.assert_allclose(getattr(of_model.scores, array), getattr(at_once, array), rtol=1e-10)
    np.testing.assert_allclose(of_model.spread_T, spread_by_step(model, evaluation_set, np.array([2.0])), rtol=1e-10)
    assert of_model.frames_per_second > 0
