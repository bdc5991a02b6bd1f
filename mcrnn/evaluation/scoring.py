"""Scores of models and of baselines on an evaluation set."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from mcrnn.evaluation.baselines import persistence
from mcrnn.evaluation.evaluation_set import BATCH_SIZE, Exam
from mcrnn.evaluation.metrics import Scores
from mcrnn.models.trained_model import TrainedModel


@torch.no_grad()
def score(
    model: TrainedModel,
    exam: Exam,
    *,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] = lambda windows: None,
) -> tuple[Scores, float]:
    """The scores of a model at steps 1 .. warm_up + horizon, and the frames a second of its inference alone.

    Args:
        model: on the device where it is to run.
        exam: what is asked.
        batch_size: windows at a time; changes nothing but memory and speed.
        on_batch: told the number of windows that are done.
    """
    network, scaling = model.network.eval(), model.scaling
    like = next(network.parameters())
    scores = exam.empty_scores(exam.steps, network.channels_out)
    seconds = 0.0
    for batch in exam.batches(batch_size):
        started = time.perf_counter()
        frames_BTCHW = batch.frames_BTCHW.to(like)
        given_BTCHW = scaling.to_model(frames_BTCHW[:, : exam.warm_up])
        prediction_BTCHW = scaling.to_physical(network(given_BTCHW, exam.warm_up, exam.steps))
        if prediction_BTCHW.is_cuda:
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
        climatology_BTCHW = None
        if exam.measures.weights is not None:
            climatology_BTCHW = exam.climatology.at(batch.start_B, slice(1, exam.steps + 1))[
                :, :, : network.channels_out
            ]
        truth_BTCHW = frames_BTCHW[:, 1:, : network.channels_out]
        scores.update(prediction_BTCHW, truth_BTCHW, exam.measures, climatology_BTCHW)
        on_batch(scores.filled)
    return scores, len(exam) * exam.steps / seconds


def score_baselines(exam: Exam, channels: int, *, batch_size: int = BATCH_SIZE) -> dict[str, Scores]:
    """The scores of persistence and climatology at lead times 1 .. horizon + 1, by name.

    Args:
        exam: what is asked.
        channels: that are predicted, the first ones.
        batch_size: windows at a time.
    """
    steps = exam.horizon + 1
    found = {name: exam.empty_scores(steps, channels) for name in ("persistence", "climatology")}
    for batch in exam.batches(batch_size):
        frames_BTCHW = batch.frames_BTCHW[:, :, :channels]
        climatology_BTCHW = exam.climatology.at(batch.start_B, slice(exam.warm_up, exam.steps + 1))[:, :, :channels]
        forecasts = {
            "persistence": persistence(frames_BTCHW[:, : exam.warm_up], steps),
            "climatology": climatology_BTCHW,
        }
        for name, forecast_BTCHW in forecasts.items():
            found[name].update(forecast_BTCHW, frames_BTCHW[:, exam.warm_up :], exam.measures, climatology_BTCHW)
    return found
