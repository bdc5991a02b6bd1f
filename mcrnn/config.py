"""One configuration of a training, and how a search spends its budget: what the YAML files say, checked.

A file has the sections `data`, `model`, `train` and `validation`, which make one `Configuration`, and for a
search also `search` and `space` (see `mcrnn.space`).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator, model_validator

ARCHITECTURES = ("convgru", "convlstm", "minconvgru", "minconvlstm", "minconvexplstm")
Architecture = Literal["convgru", "convlstm", "minconvgru", "minconvlstm", "minconvexplstm"]
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
    """The exam, the same for every trial: fixed windows, without noise.

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


class AshaConfig(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), in epochs."""

    grace_epochs: int = Field(3, ge=1, description="epochs that every trial gets")
    reduction_factor: int = Field(3, ge=2, description="one in so many trials goes on at each rung")


class MedianConfig(Section):
    """The median rule (Golovin et al. 2017, Vizier): stopped is what is worse than the median of the others so far."""

    grace_epochs: int = Field(3, ge=1, description="epochs that every trial gets")
    grace_trials: int = Field(5, ge=1, description="trials that run to their end before any is stopped")


class ConfirmConfig(Section):
    """The best configuration of each architecture, trained again."""

    seeds: int = Field(5, ge=1, description="trainings of each, with the seeds from train.seed on")


Objective = Literal["error", "parameters", "frames_per_second"]


class SearchConfig(Section):
    """The budget of the search and how it is spent."""

    trials: int | None = Field(None, ge=1, description="20 by default; of a grid, all")
    hours: float | None = Field(None, gt=0, description="that the search may run, over all its starts")
    trial_hours: float | None = Field(None, gt=0, description="that its trials may run, added up")
    goal: float | None = Field(None, gt=0, description="the search ends when an error is as low")
    failures: int = Field(5, ge=1, description="the search ends after so many trials that failed")
    concurrency: int | None = Field(None, ge=1, description="trials at a time; by default as many as there is room for")
    gpus: float | None = Field(
        None, ge=0, description="of a trial's worker, such as 0.125; by default 1 where there is one for each"
    )
    seed: int = Field(0, ge=0)
    sampler: Literal["tpe", "random", "grid", "nsga2"] = "tpe"
    scheduler: Literal["asha", "median", "none"] | None = Field(
        None, description="what stops trials early: asha by default, none for a grid or several objectives"
    )
    asha: AshaConfig = AshaConfig()
    median: MedianConfig = MedianConfig()
    objectives: list[Objective] = Field(["error"], min_length=1, description="what is made better, all at once")
    cover: str | None = Field(
        "model.architecture", description="entry each of whose choices is tried before the sampler decides"
    )
    warm_start: list[str] = Field([], description="names of earlier searches whose trials the sampler may learn from")
    storage: str | None = Field(
        None, description="URL of a database for the study, such as postgresql://...; by default a journal beside it"
    )
    keep: int = Field(3, ge=1, description="models that are kept, the best")
    confirm: ConfirmConfig | None = Field(None, description="training again of the best, with several seeds")

    @model_validator(mode="after")
    def _parts_fit(self) -> SearchConfig:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives must differ")
        if len(self.objectives) > 1:
            if self.scheduler not in (None, "none"):
                raise ValueError("several objectives leave no early stopping: scheduler must be none")
            if self.confirm or self.goal:
                raise ValueError("confirm and goal go with the error as the only objective")
        elif self.objectives != ["error"]:
            raise ValueError("a single objective is the error")
        elif self.sampler == "nsga2":
            raise ValueError("nsga2 is for several objectives")
        return self

    @property
    def early_stopping(self) -> str:
        """asha, median or none."""
        return self.scheduler or ("asha" if self.sampler != "grid" and len(self.objectives) == 1 else "none")


NOT_SEARCHED = (
    "name",
    "data.store",
    "data.variables",
    "data.coarsen",
    "model.channels_out",
    "train.workers",
    "train.max_failures",
    "train.checkpoint_minutes",
    "train.device",
    "train.deterministic",
    "validation.",
    "search.",
    "space.",
)
"""what would change the exam, or the search itself, from trial to trial"""

Values = dict[str, Any]
"""of fields, by their dotted paths"""


def given(config: dict[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path of nested dictionaries."""
    node: Any = config
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def default_of(path: str) -> Any:
    """A field's value where none is given."""
    model: Any = Configuration
    *parents, leaf = path.split(".")
    for parent in parents:
        model = model.model_fields[parent].annotation
    return model.model_fields[leaf].get_default()


def with_values(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a nested dictionary with values set at dotted paths."""
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return result


def known_fields(model: type[BaseModel] = Configuration, prefix: str = "") -> list[str]:
    """Dotted paths of all fields of a section."""
    paths = []
    for name, field in model.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for section in sections:
            paths += known_fields(section, f"{prefix}{name}.")
        if not sections or len(kinds) > 1:
            paths.append(prefix + name)
    return paths
