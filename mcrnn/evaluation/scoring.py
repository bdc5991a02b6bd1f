"""Compute the scores of models and of baselines on an evaluation set."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from mcrnn.evaluation.baselines import persistence
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.metrics import Scores
from mcrnn.models.trained_model import TrainedModel

BASELINES = ("persistence", "climatology")
"""Names of the forecasts without a network."""


@torch.no_grad()
def score(
    model: TrainedModel,
    evaluation_set: EvaluationSet,
    *,
    batch_size: int | None = None,
    on_batch: Callable[[int], None] = lambda windows: None,
) -> tuple[Scores, float]:
    """Score a model at steps 1 .. warm_up + horizon of every window.

    Args:
        model: the model, on the device where it is to run.
        evaluation_set: the windows.
        batch_size: windows at a time; by default as many as memory has room for. Changes nothing but memory and speed.
        on_batch: called after each batch with its number of windows.

    Returns:
        The scores, and how many frames per second the inference alone computed.
    """
    network = model.network.eval()
    like = next(network.parameters())
    scores = evaluation_set.empty_scores(evaluation_set.steps, network.channels_out)
    seconds = 0.0
    read = network.frames_read(evaluation_set.warm_up, evaluation_set.steps)
    for batch in evaluation_set.batches(batch_size or evaluation_set.batch_size(network)):
        started = time.perf_counter()
        frames_BTCHW = batch.frames_BTCHW.to(like)
        prediction_BTCHW = model.run(frames_BTCHW[:, :read], evaluation_set.warm_up, evaluation_set.steps)
        if prediction_BTCHW.is_cuda:
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
        climatology_BTCHW = None
        if evaluation_set.measures.weights is not None:
            climatology_BTCHW = evaluation_set.climatology.at(batch.start_B, slice(1, evaluation_set.steps + 1))
            climatology_BTCHW = climatology_BTCHW[:, :, : network.channels_out]
        truth_BTCHW = frames_BTCHW[:, 1:, : network.channels_out]
        scores.update(prediction_BTCHW, truth_BTCHW, evaluation_set.measures, climatology_BTCHW)
        on_batch(len(truth_BTCHW))
    return scores, len(evaluation_set) * evaluation_set.steps / seconds


def score_baselines(
    evaluation_set: EvaluationSet, channels: int, on_batch: Callable[[int], None] = lambda windows: None
) -> dict[str, Scores]:
    """Score persistence and climatology at lead times 1 .. horizon + 1 of every window.

    Args:
        evaluation_set: the windows.
        channels: number of predicted channels, the first ones.
        on_batch: called after each batch with its number of windows.

    Returns:
        The scores of each of `BASELINES`.
    """
    warm_up, steps = evaluation_set.warm_up, evaluation_set.horizon + 1
    found = {name: evaluation_set.empty_scores(steps, channels) for name in BASELINES}
    for batch in evaluation_set.batches(evaluation_set.batch_size()):
        frames_BTCHW = batch.frames_BTCHW[:, :, :channels]
        given_BTCHW, truth_BTCHW = frames_BTCHW[:, :warm_up], frames_BTCHW[:, warm_up:]
        climatology_BTCHW = evaluation_set.climatology.at(batch.start_B, slice(warm_up, evaluation_set.steps + 1))
        climatology_BTCHW = climatology_BTCHW[:, :, :channels]
        forecasts = {"persistence": persistence(given_BTCHW, steps), "climatology": climatology_BTCHW}
        for name, forecast_BTCHW in forecasts.items():
            found[name].update(forecast_BTCHW, truth_BTCHW, evaluation_set.measures, climatology_BTCHW)
        on_batch(len(truth_BTCHW))
    return found
