"""The learning rate of a step, and the epochs without improvement that lower it or end a training."""

from __future__ import annotations

import math

from mcrnn.config.sections import TrainConfig
from mcrnn.training.session import OBJECTIVE, Metrics


def learning_rate(train: TrainConfig, step: int, steps_per_epoch: int, history: list[Metrics]) -> float:
    """Return the learning rate of a step.

    Args:
        train: schedule and warm-up.
        step: number of the step, from 0, over all epochs.
        steps_per_epoch: steps of an epoch.
        history: metrics of the epochs before.
    """
    warm_up = round(train.warm_up_epochs * steps_per_epoch)
    if step < warm_up:
        return train.learning_rate * (step + 1) / warm_up
    if train.schedule == "cosine":
        share = (step - warm_up) / (train.epochs * steps_per_epoch - warm_up)
        return train.learning_rate * (1 + math.cos(math.pi * share)) / 2
    if train.schedule == "plateau":
        return train.learning_rate * train.plateau_factor ** _plateaus(history, train.plateau_epochs)
    return train.learning_rate


def _plateaus(history: list[Metrics], patience: int) -> int:
    """Return how many times the objective did not improve for `patience` epochs in a row."""
    best, waited, plateaus = float("inf"), 0, 0
    for metrics in history:
        waited = 0 if metrics[OBJECTIVE] < best else waited + 1
        best = min(best, metrics[OBJECTIVE])
        if waited == patience:
            waited, plateaus = 0, plateaus + 1
    return plateaus


def epochs_without_improvement(history: list[Metrics]) -> int:
    """Return the number of epochs since the best one."""
    errors = [metrics[OBJECTIVE] for metrics in history]
    return len(errors) - 1 - errors.index(min(errors)) if errors else 0
