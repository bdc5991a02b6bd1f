"""One configuration of a training, and how a search spends its budget: what the YAML files say, checked.

A file has the sections `data`, `model`, `train` and `validation`, which make one `Configuration`, and for a
search also `search` and `space` (see `mcrnn.space`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator, model_validator

from mcrnn.config.architectures import Architecture

Padding = Literal["circular", "cylinder", "zeros"]


class Section(BaseModel):
    """A part of the file: unknown keys are mistakes, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """What is learnt from."""

    store: str = Field(min_length=1, description="name of the field store, such as data/ns.zarr")
    sequence_length: int = Field(20, ge=1, description="steps of a training window, which has one frame more")
    coarsen: int = Field(1, ge=1, description="mean over blocks of n x n grid points, before all else")
    normalize: bool = Field(False, description="subtract the training split's mean, divide by its deviation")
    variables: list[str] | None = Field(None, min_length=1, description="channels of the store; all by default")
    fixed_windows: bool = Field(
        False, description="windows of a series always start at its first frame, as in the paper"
    )
    windows_per_epoch: int | None = Field(
        None, ge=1, description="by default one a sample, or as many of a series as fit without overlap"
    )
    noise: float = Field(0.0, ge=0, description="standard deviation of Gaussian noise on training inputs")


class ModelConfig(Section):
    """The network."""

    architecture: Architecture
    hidden_size: int | list[int] = Field(16, description="channels of every layer, or of each, from 1 to 4096")
    parameters: int | None = Field(
        None, ge=1, description="in place of hidden_size: as wide as comes nearest to so many parameters"
    )
    layers: int = Field(
        4, ge=1, le=64, description="number of recurrent layers; where hidden_size is a list, its length"
    )
    kernel_size: int = Field(3, ge=1, le=15, description="of the recurrent convolutions, odd")
    padding: Padding | None = Field(None, description="by default what the store's boundary asks for")
    prediction: Literal["frame", "increment"] = Field(
        "frame", description="whether the next frame is decoded or what is added to the last one"
    )
    decode: Literal["residual", "hidden"] = Field("residual", description="what the decoder reads")
    norm: Literal["layer", "group"] = Field(
        "layer", description="over the grid, or over groups of channels and the grid"
    )
    norm_groups: int = Field(1, ge=1, description="groups of the group norm; divides hidden_size")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden channels dropped in training")
    tanh_encoder: bool = Field(False, description="a tanh after the encoder")
    channels_out: int | None = Field(
        None, ge=1, description="channels predicted, the first so many of the field; the others are held as given"
    )

    @field_validator("hidden_size", mode="wrap")
    @classmethod
    def _widths_are_whole_numbers(cls, value: Any, _: Any) -> int | list[int]:
        # pydantic's own message for a union would list what is wrong with either
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
    """How it is trained."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(8, ge=1, description="windows of a step, over all workers")
    micro_batch: int | None = Field(
        None, ge=1, description="windows that a worker takes at a time, gradients being added up; all by default"
    )
    max_batches: int | None = Field(None, ge=1, description="at most so many steps an epoch, for quick tries")
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(
        0.0, ge=0, description="L2 penalty inside Adam, as the paper has it; decoupled from the gradient in AdamW"
    )
    schedule: Literal["constant", "cosine", "plateau"] = Field(
        "cosine", description="of the learning rate: to 0 at the end, or times plateau_factor where nothing improves"
    )
    warm_up_epochs: float = Field(0.0, ge=0, description="in which the learning rate rises from 0")
    plateau_epochs: int = Field(5, ge=1, description="without improvement, before the learning rate is lowered")
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    early_stopping: int | None = Field(None, ge=1, description="ends after so many epochs without improvement")
    gradient_clip: PositiveFloat | Literal["learning_rate"] | None = Field(
        1.0, description="largest norm of the gradient; null for none, learning_rate for that, as the paper's code does"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an average of the weights, which is what is judged and kept"
    )
    teacher_forcing_steps: int = Field(10, ge=1, description="steps whose input is the truth")
    teacher_forcing_end: int | None = Field(
        None, ge=1, description="of a curriculum: the steps at its end, reached linearly"
    )
    teacher_forcing_epochs: int | None = Field(
        None, ge=1, description="of a curriculum: epochs until its end; all by default"
    )
    seed: int = Field(0, ge=0, lt=2**20)
    deterministic: bool = Field(False, description="refuse operations whose result varies; runs are then bit for bit")
    precision: Literal["float64", "float32", "tf32", "bf16"] = Field(
        "float32", description="of convolutions; tf32 and bf16 keep recurrences, norms and the loss in float32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="a GPU where there is one, by default")
    workers: int = Field(1, ge=1, description="data-parallel workers; more than one run on Ray Train")
    max_failures: int = Field(3, ge=0, description="lost workers and nodes after which training still goes on")
    checkpoint_minutes: float = Field(10.0, gt=0, description="between checkpoints within an epoch")

    @model_validator(mode="after")
    def _options_fit(self) -> TrainConfig:
        if self.teacher_forcing_epochs is not None and self.teacher_forcing_end is None:
            raise ValueError("teacher_forcing_epochs needs teacher_forcing_end, the steps that it leads to")
        if self.warm_up_epochs > self.epochs:
            raise ValueError(f"warm_up_epochs ({self.warm_up_epochs:g}) is above epochs ({self.epochs})")
        return self

    def teacher_forcing(self, epoch: int) -> int:
        """Teacher-forced steps of an epoch, which count from 1."""
        if self.teacher_forcing_end is None:
            return self.teacher_forcing_steps
        over = self.teacher_forcing_epochs or self.epochs
        share = min(1.0, (epoch - 1) / max(1, over - 1))
        return round(self.teacher_forcing_steps + share * (self.teacher_forcing_end - self.teacher_forcing_steps))


class ValidationConfig(Section):
    """How every trial is evaluated: on the same fixed windows, without noise.

    They start at each sample's first frame; in a series they follow each other without overlap.
    """

    warm_up: int = Field(10, ge=1, description="frames given")
    horizon: int = Field(20, ge=1, description="closed-loop steps after the warm-up")
    windows: int | None = Field(None, ge=1, description="at most so many windows, evenly spread; all by default")
    batch_size: int = Field(32, ge=1, description="windows at a time; does not change the result")


class Configuration(Section):
    """One training, fully determined."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the search, run and model")
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
