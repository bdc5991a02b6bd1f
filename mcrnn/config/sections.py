"""The sections `data`, `model`, `train` and `validation` of a YAML file, which make the configuration of one training.

A file for a search also has the sections `search` (`mcrnn.config.search`) and `space` (`mcrnn.config.space`). The
descriptions of the fields are the reference of the documentation and of the JSON schema.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator, model_validator

from mcrnn.config.architectures import Architecture

Padding = Literal["circular", "cylinder", "zeros"]


class Section(BaseModel):
    """A section of the file: unknown keys are errors, and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """The data that is trained on."""

    store: str = Field(
        min_length=1, description="Field store to train on, such as data/ns.zarr, relative to the storage root."
    )
    sequence_length: int = Field(
        20, ge=1, description="Steps of a training window. A window has one frame more than steps."
    )
    coarsen: int = Field(
        1, ge=1, description="Replace blocks of n x n grid points by their mean, before anything else; 1 for none."
    )
    normalize: bool = Field(
        False,
        description="Subtract the mean of the training split from each variable and divide by its standard deviation; "
        "variables that were converted with `--min-max` go from 0 to 1 in place of that.",
    )
    variables: list[str] | None = Field(
        None, min_length=1, description="Variables of the store to train on, as channels in this order; null for all."
    )
    fixed_windows: bool = Field(
        False,
        description="Start the training windows at the same frames in every epoch, as the paper does: at the first "
        "frame of each sample, and in a series one after the other from its first frame. By default the starts are "
        "drawn anew for each epoch.",
    )
    windows_per_epoch: int | None = Field(
        None,
        ge=1,
        description="Training windows of an epoch. null for one of each sample, or in a series for as many as fit "
        "without overlap.",
    )
    noise: float = Field(
        0.0,
        ge=0,
        description="Standard deviation of Gaussian noise added to the inputs in training, in the units that the "
        "network sees; 0 for none. Channels that are not predicted (model.channels_out) stay as they are.",
    )


class ModelConfig(Section):
    """The network."""

    architecture: Architecture = Field(description="Recurrent cell of the network.")
    hidden_size: int | list[int] = Field(
        16, description="Hidden channels of every layer, from 1 to 4096, or a list with those of each layer."
    )
    parameters: int | None = Field(
        None,
        ge=1,
        description="Number of trainable parameters, in place of hidden_size: all layers are as wide as comes nearest "
        "to it. null to use hidden_size.",
    )
    width_multiple: int = Field(
        1,
        ge=1,
        le=4096,
        description="The widths that parameters chooses from are multiples of this number. GPUs multiply matrices "
        "fastest whose sides are multiples of 8, which has not been measured for these networks yet.",
    )
    layers: int = Field(
        4, ge=1, le=64, description="Number of recurrent layers. If hidden_size is a list, the length of the list."
    )
    kernel_size: int = Field(
        3, ge=1, le=15, description="Side of the kernels of the recurrent convolutions, in grid points; odd."
    )
    padding: Padding | None = Field(
        None,
        description="How convolutions continue the field beyond its edges: circular wraps both axes, cylinder wraps "
        "the width and puts zeros beyond the height, zeros puts zeros beyond all edges. null for what the boundary of "
        "the store asks for.",
    )
    prediction: Literal["frame", "increment"] = Field(
        "frame", description="Output of the decoder: the next frame, or the increment that is added to the last frame."
    )
    decode: Literal["residual", "hidden"] = Field(
        "residual",
        description="Input of the decoder: the output of the last layer after residual connection and norm, or the "
        "hidden state of its cell, as the paper's ConvGRU has it.",
    )
    norm: Literal["layer", "group"] = Field(
        "layer",
        description="Norm after each layer: layer normalises each channel over the grid, whose size the network is "
        "then tied to; group normalises groups of channels over the grid, of any size.",
    )
    norm_groups: int = Field(1, ge=1, description="Number of groups of the group norm. It must divide hidden_size.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Fraction of hidden channels dropped in training.")
    tanh_encoder: bool = Field(False, description="Apply a tanh after the encoder.")
    channels_out: int | None = Field(
        None,
        ge=1,
        description="Number of channels to predict, the first ones of the field; null for all that are no inputs. In "
        "closed loop the inputs of a store (--static, --forcing) have their true values at each step; other channels "
        "that are not predicted keep the values of the last given frame.",
    )

    @field_validator("hidden_size", mode="wrap")
    @classmethod
    def _widths_are_whole_numbers(cls, value: Any, _: Any) -> int | list[int]:
        # pydantic's own message for a union would list the errors of both alternatives
        widths = value if isinstance(value, list) else [value]
        if not 1 <= len(widths) <= 64 or any(type(width) is not int or not 1 <= width <= 4096 for width in widths):
            raise ValueError(f"must be a whole number from 1 to 4096, or a list of at most 64 such, not {value!r}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _layers_of_widths(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("hidden_size"), list):
            return {"layers": len(values["hidden_size"])} | values
        return values

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        if self.layers != len(self.widths):
            raise ValueError(f"layers ({self.layers}) and hidden_size ({len(self.widths)} widths) do not agree")
        if self.parameters is not None and "hidden_size" in self.model_fields_set:
            raise ValueError("parameters takes the place of hidden_size: only one of them can be given")
        if self.width_multiple > 1 and self.parameters is None:
            raise ValueError(
                f"width_multiple ({self.width_multiple}) rounds the width that parameters asks for: give parameters "
                "in place of hidden_size, or leave width_multiple out"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the grid is kept, not {self.kernel_size}")
        uneven = any(width % self.norm_groups for width in self.widths)
        if self.norm == "group" and uneven and self.parameters is None:
            raise ValueError(f"norm_groups ({self.norm_groups}) must divide hidden_size ({self.hidden_size})")
        return self

    @property
    def widths(self) -> list[int]:
        """Channels of each layer."""
        return self.hidden_size if isinstance(self.hidden_size, list) else [self.hidden_size] * self.layers


class TrainConfig(Section):
    """How the network is trained."""

    epochs: int = Field(10, ge=1, description="Number of epochs.")
    batch_size: int = Field(8, ge=1, description="Windows of an optimizer step, over all workers together.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Windows that a worker computes at a time; their gradients are added up to those of its whole "
        "share of the batch. Smaller values need less memory. null for the whole share at once.",
    )
    max_batches: int | None = Field(
        None, ge=1, description="Largest number of steps of an epoch, for quick tries; null for no limit."
    )
    optimizer: Literal["adam", "adamw"] = Field("adam", description="Optimizer; see weight_decay for the difference.")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate at the start, or after the warm-up.")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Weight decay: with adam an L2 penalty that is part of the gradient, as in the paper; with adamw "
        "decoupled from the gradient.",
    )
    schedule: Literal["constant", "cosine", "plateau"] = Field(
        "cosine",
        description="Learning rate over the training: constant, a cosine that falls to 0 at the end, or plateau, which "
        "multiplies it by plateau_factor whenever the validation error has not improved for plateau_epochs.",
    )
    warm_up_epochs: float = Field(
        0.0, ge=0, description="Epochs at the start, also fractions, in which the learning rate rises linearly from 0."
    )
    plateau_epochs: int = Field(
        5, ge=1, description="Epochs without improvement after which the schedule plateau lowers the learning rate."
    )
    plateau_factor: float = Field(
        0.5, gt=0, lt=1, description="Factor by which the schedule plateau lowers the learning rate."
    )
    early_stopping: int | None = Field(
        None,
        ge=1,
        description="Epochs without improvement of the validation error after which training ends; null to train for "
        "all epochs.",
    )
    gradient_clip: PositiveFloat | Literal["learning_rate"] | None = Field(
        1.0,
        description="Largest norm of the gradient; larger gradients are scaled down to it. learning_rate clips at the "
        "current learning rate, which is an option of the paper's code; null for no clipping, as in the paper.",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Largest decay per step of an exponential moving average of the weights, such as 0.999. After n "
        "steps the decay is (1 + n) / (10 + n) while that is smaller, so that the average spans a tenth of the steps "
        "so far. The averaged weights are validated and kept. null for no averaging.",
    )
    teacher_forcing_steps: int = Field(
        10,
        ge=1,
        description="Steps of a training window, from its start, whose input is the truth. The input of the other "
        "steps is the network's own output.",
    )
    teacher_forcing_end: int | None = Field(
        None,
        ge=1,
        description="Teacher-forced steps at the end of a curriculum, which changes linearly from "
        "teacher_forcing_steps in the first epoch to this number. null for the same number in all epochs.",
    )
    teacher_forcing_epochs: int | None = Field(
        None, ge=1, description="Epoch in which the curriculum reaches teacher_forcing_end; null for the last epoch."
    )
    seed: int = Field(
        0, ge=0, lt=2**20, description="Seed of the initial weights, the order of windows, noise and dropout."
    )
    deterministic: bool = Field(
        False,
        description="Use only operations whose results do not vary from run to run, so that a run on the same machine "
        "can be repeated bit for bit. May be slower.",
    )
    precision: Literal["float64", "float32", "tf32", "bf16"] = Field(
        "float32",
        description="Precision of the convolutions. tf32 and bf16 are faster on GPUs that have them, and keep "
        "recurrences, norms and the loss in float32.",
    )
    cuda_graph: bool = Field(
        False,
        description="Start a training step on a GPU as one CUDA graph in place of several hundred operations, with the "
        "same results. It has not been measured on a GPU yet. Where it cannot be done (on processors, with several "
        "workers, with gradient_clip: learning_rate), a line says why, and the steps run operation by operation.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device to train on; auto for a GPU if there is one, and the CPU otherwise."
    )
    workers: int = Field(
        1, ge=1, description="Number of data-parallel workers. More than one run on Ray Train, one on each GPU or CPU."
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="How often training continues from the last checkpoint after a worker or node was lost, before it "
        "counts as failed.",
    )
    checkpoint_minutes: float = Field(
        10.0,
        gt=0,
        description="Minutes between checkpoints within an epoch. There is always one at the end of an epoch.",
    )

    @model_validator(mode="after")
    def _options_fit(self) -> TrainConfig:
        if self.teacher_forcing_epochs is not None and self.teacher_forcing_end is None:
            raise ValueError("teacher_forcing_epochs needs teacher_forcing_end, the steps that it leads to")
        if self.warm_up_epochs > self.epochs:
            raise ValueError(f"warm_up_epochs ({self.warm_up_epochs:g}) is above epochs ({self.epochs})")
        return self

    def teacher_forcing(self, epoch: int) -> int:
        """Return the number of teacher-forced steps in an epoch; epochs count from 1."""
        if self.teacher_forcing_end is None:
            return self.teacher_forcing_steps
        last = self.teacher_forcing_epochs or self.epochs
        share = min(1.0, (epoch - 1) / max(1, last - 1))
        return round(self.teacher_forcing_steps + share * (self.teacher_forcing_end - self.teacher_forcing_steps))


class ValidationConfig(Section):
    """How every training is validated: on the same fixed windows of the validation split, without noise.

    A window starts at the first frame of each sample. In a series, windows follow each other without overlap.
    """

    warm_up: int = Field(10, ge=1, description="Frames that are given before the closed loop.")
    horizon: int = Field(20, ge=1, description="Closed-loop steps after the warm-up.")
    windows: int | None = Field(
        None, ge=1, description="Largest number of windows, evenly spread over the split; null for all."
    )
    batch_size: int = Field(
        32, ge=1, description="Windows that are computed at a time. Changes the memory needed, not the result."
    )
    channel_weights: dict[str, PositiveFloat] | None = Field(
        None,
        min_length=1,
        description="Weights of variables in the objective, such as {z: 2, t: 1}: normalised squared errors are "
        "averaged over the predicted variables with these weights. A variable that is not named has weight 1. null for "
        "equal weights.",
    )

    def error_scales(self, channels: Sequence[str], std: Sequence[float]) -> tuple[float, ...]:
        """Return what the errors of channels are divided by, so that the mean of their squares is the weighted one.

        Args:
            channels: names of the channels over which the mean is taken.
            std: standard deviation of each of them.

        Returns:
            The standard deviations, over the root of the channel's weight relative to the mean weight of the channels.
        """
        if self.channel_weights is None:
            return tuple(std)
        weights = [self.channel_weights.get(channel, 1.0) for channel in channels]
        mean = sum(weights) / len(weights)
        return tuple(each / math.sqrt(weight / mean) for each, weight in zip(std, weights, strict=True))

    @property
    def weighting(self) -> str:
        """The weights in words that follow a heading, such as ", channels weighted z 2, t 1"; empty for equal ones."""
        if self.channel_weights is None:
            return ""
        return f", channels weighted {', '.join(f'{name} {w:g}' for name, w in self.channel_weights.items())}"


class Configuration(Section):
    """The configuration of one training."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run or the search, and of its model."
    )
    data: DataConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()

    @model_validator(mode="after")
    def _steps_fit(self) -> Configuration:
        for name in ("teacher_forcing_steps", "teacher_forcing_end"):
            if (getattr(self.train, name) or 0) > self.data.sequence_length:
                raise ValueError(
                    f"train.{name} ({getattr(self.train, name)}) is above "
                    f"data.sequence_length ({self.data.sequence_length})"
                )
        return self
