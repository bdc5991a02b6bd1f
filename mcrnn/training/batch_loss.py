"""The loss of a batch and its gradients: scaling, noise, micro-batches, and the exchange between workers.

Axes: B window of a batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mcrnn.config.sections import Configuration
from mcrnn.data.description import Scaling
from mcrnn.data.windows import Batch
from mcrnn.models import Forecaster


@dataclass(frozen=True)
class StepInputs:
    """What a training step computes with, on the device of the model."""

    windows_BTCHW: torch.Tensor
    """The frames of this worker's windows, one more than steps, in the units that the model sees."""
    noisy_BTCHW: torch.Tensor | None
    """The frames that are given to the model, with noise; None for those of the windows."""
    teacher_forcing_steps: int
    """Steps whose input is the truth."""
    weight: float
    """Factor of the loss, see `Batch.weight`."""

    def given(self) -> torch.Tensor:
        """Return the frames that are given to the model, (B, T, C, H, W)."""
        return self.windows_BTCHW[:, :-1] if self.noisy_BTCHW is None else self.noisy_BTCHW

    def clone(self) -> StepInputs:
        """Return inputs with the same values in memory of their own."""
        noisy_BTCHW = None if self.noisy_BTCHW is None else self.noisy_BTCHW.clone()
        return replace(self, windows_BTCHW=self.windows_BTCHW.clone(), noisy_BTCHW=noisy_BTCHW)

    def copy_(self, other: StepInputs) -> None:
        """Take over the values of other inputs of the same shape, in place."""
        self.windows_BTCHW.copy_(other.windows_BTCHW)
        if self.noisy_BTCHW is not None and other.noisy_BTCHW is not None:
            self.noisy_BTCHW.copy_(other.noisy_BTCHW)


class BatchLoss:
    """The mean squared error over all steps of a batch's windows, in the units that the model sees.

    Args:
        config: the configuration of the training.
        model: the network, on several workers as `DistributedDataParallel` wraps it.
        scaling: conversion between the field's units and the model's.
        device: the device of the model.
        dtype: the dtype of the model.
        weights_CHW: weights of the points of the predicted channels, whose mean over the grid is 1, see `mask_weights`;
            None if all count the same.
    """

    def __init__(
        self,
        config: Configuration,
        model: nn.Module,
        scaling: Scaling,
        device: torch.device,
        dtype: torch.dtype,
        weights_CHW: torch.Tensor | None = None,
    ) -> None:
        self.config, self.model, self.scaling, self.device, self.dtype = config, model, scaling, device, dtype
        self.weights_CHW = weights_CHW
        network = cast("Forecaster", model.module if isinstance(model, DistributedDataParallel) else model)
        self.channels_out = network.channels_out
        self.noise_generator = torch.Generator(device)

    def inputs(self, batch: Batch, epoch: int) -> StepInputs:
        """Return what the step of a batch computes with.

        Args:
            batch: this worker's part of the global batch.
            epoch: number of the epoch, for the noise and for the teacher-forced steps of a curriculum.
        """
        windows_BTCHW = self.scaling.to_model(batch.windows_BTCHW.to(self.device, self.dtype))
        noisy_BTCHW = None
        if self.config.data.noise > 0:
            given_BTCHW = windows_BTCHW[:, :-1]
            noisy_BTCHW = given_BTCHW + self._noise(given_BTCHW, batch.positions, epoch)
        return StepInputs(windows_BTCHW, noisy_BTCHW, self.config.train.teacher_forcing(epoch), batch.weight)

    def backward(self, inputs: StepInputs) -> torch.Tensor:
        """Add the gradients of a batch to those of the model, `micro_batch` windows at a time.

        Nothing here asks for a value on the device, so that a GPU can record the operations and repeat them.

        Args:
            inputs: what `inputs` has returned.

        Returns:
            The loss, whose mean over the workers is that of the global batch.
        """
        losses = []
        windows = len(inputs.windows_BTCHW)
        size = self.config.train.micro_batch or windows
        for first in range(0, windows, size):
            part = slice(first, min(first + size, windows))
            share = inputs.weight * (part.stop - first) / windows
            # workers exchange their gradients once, with the last part
            with self._without_exchange() if part.stop < windows else contextlib.nullcontext():
                part_loss = self._mean_squared_error(inputs, part) * share
                part_loss.backward()
            losses.append(part_loss.detach())
        return functools.reduce(torch.add, losses)

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def _mean_squared_error(self, inputs: StepInputs, part: slice) -> torch.Tensor:
        prediction_BTCHW = self.model(inputs.given()[part], inputs.teacher_forcing_steps)
        truth_BTCHW = inputs.windows_BTCHW[part, 1:, : prediction_BTCHW.shape[2]]
        if self.weights_CHW is None:
            return nn.functional.mse_loss(prediction_BTCHW, truth_BTCHW)
        error_BTCHW = torch.where(self.weights_CHW > 0, prediction_BTCHW - truth_BTCHW, 0.0)
        return (error_BTCHW.square() * self.weights_CHW).mean()

    def _noise(self, x_BTCHW: torch.Tensor, positions: list[int], epoch: int) -> torch.Tensor:
        """Draw Gaussian noise that follows from the seed, the epoch and the position of each window in the epoch.

        There is none on channels that are not predicted: what they hold, such as orography, is known without an error.
        """
        noise_BTCHW = torch.zeros_like(x_BTCHW, memory_format=torch.contiguous_format)
        for noise_TCHW, position in zip(noise_BTCHW, positions, strict=True):
            self.noise_generator.manual_seed((self.config.train.seed << 43) + (epoch << 28) + position)
            noise_TCHW[:, : self.channels_out].normal_(std=self.config.data.noise, generator=self.noise_generator)
        return noise_BTCHW
