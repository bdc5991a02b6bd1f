"""Errors of a model's forecasts on an exam, window by window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mcrnn.errors import UserError
from mcrnn.fields import FieldStore
from mcrnn.model_directory import TrainedModel
from mcrnn.windows import Split, Starts, check_length, evaluation_windows, open_split


@dataclass(frozen=True)
class Exam:
    """What a model is asked: frames given, steps in closed loop after them, and where the windows start."""

    split: Split
    windows: Starts
    """sample and first frame of each"""
    warm_up: int
    horizon: int

    @classmethod
    def of(cls, model: TrainedModel, store: FieldStore, warm_up: int | None, horizon: int | None) -> Exam:
        """On the test split, with the frames and steps of the model's validation where they are left open.

        Raises:
            UserError: the samples are too short.
        """
        data, own = model.config.data, model.config.validation
        warm_up, horizon = warm_up or own.warm_up, horizon or own.horizon
        split = open_split(store, "test", data)
        check_length(split.shape[1], warm_up + horizon + 1, f"a warm-up of {warm_up} and a horizon of {horizon}")
        return cls(split, evaluation_windows(split.shape, store.is_series, warm_up + horizon), warm_up, horizon)

    @property
    def steps(self) -> int:
        """Forced and in closed loop."""
        return self.warm_up + self.horizon


def check_store(model: TrainedModel, store: FieldStore, name: str) -> None:
    """Refuse a store that is not the one that a model was trained on.

    Raises:
        UserError: its digest is another.
    """
    if model.field.store_digest and store.digest != model.field.store_digest:
        raise UserError(
            f"'{name}' was trained on a store with digest {model.field.store_digest[:12]}, "
            f"'{store.name}' now has {store.digest[:12]}: build the store anew with its old parameters"
        )


@torch.no_grad()
def squared_errors(
    model: TrainedModel,
    exam: Exam,
    *,
    batch_size: int = 32,
    on_batch: Callable[[int], None] = lambda windows: None,
) -> np.ndarray:
    """Squared errors in the field's units, the mean over the grid: float64 (windows, steps, channels).

    An error that is not finite is infinite.
    """
    network, scaling = model.network, model.scaling
    like = next(network.parameters())
    network.eval()
    found = []
    for sample_B, start_B in zip(*(part.split(batch_size) for part in exam.windows), strict=True):
        frames_BTCHW = exam.split.windows(sample_B, start_B, exam.steps + 1).to(like)
        given_BTCHW = scaling.to_model(frames_BTCHW[:, : exam.warm_up])
        prediction_BTCHW = scaling.to_physical(network(given_BTCHW, exam.warm_up, exam.steps))
        truth_BTCHW = frames_BTCHW[:, 1:, : network.channels_out]
        squared_BTC = (prediction_BTCHW.double() - truth_BTCHW.double()).square().mean((-2, -1))
        found.append(torch.nan_to_num(squared_BTC, nan=torch.inf).cpu().numpy())
        on_batch(len(sample_B))
    return np.concatenate(found)
