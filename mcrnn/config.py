"""The format of the YAML files: one configuration of a training, and a search around it.

A file has the sections `data`, `model`, `train` and `validation`, which make one `Configuration`, and for a
search also `search` and `space`. An entry of the space names a field of the configuration by its dotted path
and takes the place of that field's value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mcrnn.errors import UserError, did_you_mean

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
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the grid is kept, not {self.kernel_size}")
        if self.norm == "group" and any(width % self.norm_groups for width in self.widths):
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
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty inside Adam, as the paper has it")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="of the learning rate, to 0")
    gradient_clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null for none")
    teacher_forcing_steps: int = Field(10, ge=1, description="steps whose input is the truth")
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=1, description="data-parallel workers; more than one run on Ray Train")
    precision: Literal["float32", "tf32", "bf16"] = Field(
        "float32", description="of convolutions; recurrences, norms and the loss stay in float32"
    )


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
        if self.train.teacher_forcing_steps > self.data.sequence_length:
            raise ValueError(
                f"train.teacher_forcing_steps ({self.train.teacher_forcing_steps}) is above "
                f"data.sequence_length ({self.data.sequence_length})"
            )
        return self


class AshaConfig(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), in epochs."""

    grace_epochs: int = Field(3, ge=1, description="epochs that every trial gets")
    reduction_factor: int = Field(3, ge=2, description="one in so many trials goes on at each rung")


class SearchConfig(Section):
    """The budget of the search and how it is spent."""

    trials: int = Field(20, ge=1)
    concurrency: int | None = Field(None, ge=1, description="trials at a time; by default one a core")
    seed: int = Field(0, ge=0)
    sampler: Literal["tpe", "random"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    asha: AshaConfig = AshaConfig()
    cover: str | None = Field(
        "model.architecture", description="entry each of whose choices is tried before the sampler decides"
    )


class SpaceEntry(Section):
    """The values that a field of the configuration may take."""

    choice: list[Any] | None = Field(None, min_length=1, description="one of these")
    int_range: tuple[int, int] | None = Field(None, alias="int", description="whole numbers, both included")
    float_range: tuple[float, float] | None = Field(None, alias="float", description="numbers between")
    log: bool = Field(False, description="sample the logarithm uniformly")
    step: float | None = Field(None, gt=0, description="distance of the values")

    @model_validator(mode="after")
    def _one_kind(self) -> SpaceEntry:
        if sum(kind is not None for kind in (self.choice, self.int_range, self.float_range)) != 1:
            raise ValueError("needs exactly one of choice, int, float")
        bounds = self.int_range or self.float_range
        if bounds is None:
            if self.log or self.step is not None:
                raise ValueError("log and step go with int or float, not with choice")
            return self
        if bounds[0] > bounds[1]:
            raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
        if self.log and bounds[0] <= 0:
            raise ValueError(f"log needs bounds above 0, not {bounds[0]}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.int_range is not None and self.step is not None and self.step != int(self.step):
            raise ValueError(f"step of an int must be a whole number, not {self.step}")
        return self

    @property
    def corners(self) -> list[Any]:
        """Values such that the configuration accepts all if it accepts these: every choice, both bounds."""
        return list(self.choice or self.int_range or self.float_range or [])


SectionT = TypeVar("SectionT", bound=Section)
NOT_SEARCHED = (
    "name",
    "data.store",
    "data.variables",
    "data.coarsen",
    "model.channels_out",
    "train.workers",
    "validation.",
    "search.",
    "space.",
)
"""what would change the exam, or the search itself, from trial to trial"""


class Search(Section):
    """A configuration with some fields left to a search."""

    base: dict[str, Any]
    """the file's configuration sections as they stand; fields of the space may be missing"""
    search: SearchConfig
    space: dict[str, SpaceEntry]

    @property
    def name(self) -> str:
        """Name of the search."""
        return self.base["name"]

    def configuration(self, values: dict[str, Any]) -> Configuration:
        """The configuration with these values, keyed by dotted path, in place of the space's entries.

        Raises:
            ValidationError: a value does not fit its field, or the values do not fit each other.
        """
        return Configuration.model_validate(with_values(self.base, values))

    def first_configuration(self) -> Configuration:
        """The configuration of the entries' first corners: for what is the same in all of them."""
        return self.configuration({path: entry.corners[0] for path, entry in self.space.items()})


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
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            paths += known_fields(section, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def load_configuration(path: str) -> Configuration:
    """Read a file without a space.

    Raises:
        UserError: the file is missing, no YAML, or has mistakes; all of them are in the message.
    """
    document = _Document.read(path)
    if "space" in document.content:
        raise UserError(f"{path} has a space to search; use python -m mcrnn.tune, or remove 'space' and 'search'")
    return _checked(document, Configuration, document.content)


def load_search(path: str) -> Search:
    """Read a file with a space, and check that every value of every entry makes a valid configuration.

    Raises:
        UserError: the file is missing, no YAML, or has mistakes; all of them are in the message.
    """
    document = _Document.read(path)
    content = dict(document.content)
    if "space" not in content:
        raise UserError(f"{path} has no 'space' to search; use python -m mcrnn.train for a single configuration")
    raw_space = content.pop("space")
    raw_search = content.pop("search", {})
    mistakes: list[str] = []
    search = _collect(document, SearchConfig, raw_search, ("search",), mistakes)
    space: dict[str, SpaceEntry] = {}
    if not isinstance(raw_space, dict) or not raw_space:
        mistakes.append(document.mistake(("space",), "needs at least one entry such as model.hidden_size"))
        raw_space = {}
    fields = known_fields()
    for key, raw in raw_space.items():
        place = ("space", key)
        if str(key).startswith(NOT_SEARCHED):
            mistakes.append(document.mistake(place, f"{key} is the same for all trials and cannot be searched"))
        elif key not in fields:
            near = did_you_mean(str(key), (f for f in fields if not f.startswith(NOT_SEARCHED)))
            mistakes.append(document.mistake(place, f"no field of the configuration{near}"))
        elif (entry := _collect(document, SpaceEntry, raw, place, mistakes)) is not None:
            space[key] = entry
    corners = {key: entry.corners[0] for key, entry in space.items()}
    first = with_values(content, corners) if _is_nested(content) else content
    _collect(document, Configuration, first, (), mistakes, corners)
    if not mistakes:
        for key, entry in space.items():
            for value in entry.corners[1:]:
                _collect(document, Configuration, with_values(first, {key: value}), (), mistakes, {key: value})
    if search is not None and search.cover is not None and "cover" in raw_search and search.cover not in space:
        mistakes.append(document.mistake(("search", "cover"), f"'{search.cover}' is no entry of the space"))
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))
    assert search is not None
    return Search(base=content, search=search, space=space)


def _is_nested(content: dict[str, Any]) -> bool:
    return all(isinstance(content.get(k, {}), dict) for k in ("data", "model", "train", "validation"))


def find(path: str) -> Path:
    """A configuration file: relative to the current folder, else one of those shipped with the package.

    Raises:
        UserError: there is neither.
    """
    if Path(path).is_file():
        return Path(path)
    import search_spaces

    shipped = Path(search_spaces.__path__[0])
    if (shipped.parent / path).is_file() and (shipped.parent / path).is_relative_to(shipped):
        return shipped.parent / path
    here = Path(path).parent
    names = {str(here / p.name) for p in here.glob("*.yaml")} if here.is_dir() else set()
    names |= {p.relative_to(shipped.parent).as_posix() for p in shipped.rglob("*.yaml")}
    raise UserError(f"there is no file '{path}'{did_you_mean(path, names)}")


class _Document:
    """A YAML file that remembers the line of each key."""

    def __init__(self, path: str, content: dict[str, Any], root: yaml.Node | None) -> None:
        self.path, self.content, self.root = path, content, root

    @classmethod
    def read(cls, path: str) -> _Document:
        file = find(path)
        try:
            text = file.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            content = yaml.safe_load(text)
        except UnicodeDecodeError:
            raise UserError(f"{path} is not a YAML file: it is not UTF-8 text") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f":{mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise UserError(f"{path}{where}: not valid YAML: {problem}") from None
        if not isinstance(content, dict):
            raise UserError(f"{path} is not a configuration: it must be a mapping with the key 'data' and others")
        document = cls(path, content, root)
        document._refuse_duplicates(root)
        return document

    def _refuse_duplicates(self, node: yaml.Node | None) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    raise UserError(f"{self.path}:{key.start_mark.line + 1}: '{key.value}' is given twice")
                seen.add(key.value)
                self._refuse_duplicates(value)

    def line(self, location: tuple[Any, ...]) -> int:
        """Line of the deepest part of a location that is in the file."""
        node, line = self.root, 1
        for part in location:
            if not isinstance(node, yaml.MappingNode):
                break
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                break
        return line

    def mistake(self, location: tuple[Any, ...], text: str) -> str:
        """One line of an error message: file, line, key and what is wrong."""
        key = ".".join(map(str, location))
        return f"{self.path}:{self.line(location)}: {key + ': ' if key else ''}{text}"


def _checked(document: _Document, model: type[Configuration], raw: Any) -> Configuration:
    mistakes: list[str] = []
    result = _collect(document, model, raw, (), mistakes)
    if result is None:
        raise UserError("\n".join(mistakes))
    return result


def _collect(
    document: _Document,
    model: type[SectionT],
    raw: Any,
    prefix: tuple[str, ...],
    mistakes: list[str],
    sampled: dict[str, Any] | None = None,
) -> SectionT | None:
    """Validate, or add a line for each mistake. `sampled` are values that came from the space."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors():
            location = detail["loc"]
            path = ".".join(map(str, location))
            text = _explain(model, detail)
            if sampled and path in sampled:
                mistakes.append(document.mistake(("space", path), f"{text} (got {sampled[path]!r})"))
                continue
            if sampled and not location:
                values = ", ".join(f"{k} = {v!r}" for k, v in sampled.items())
                text = f"{text} where the space gives {values}" if len(sampled) == 1 else text
            mistakes.append(document.mistake((*prefix, *location), text))
        return None


def _explain(model: type[BaseModel], detail: Any) -> str:
    """pydantic's message in our words."""
    location, kind = detail["loc"], detail["type"]
    if kind == "extra_forbidden":
        section: Any = model
        for part in location[:-1]:
            section = section.model_fields[part].annotation
        known = list(section.model_fields)
        if section is Configuration:
            known += ["search", "space"]
        return f"unknown key{did_you_mean(str(location[-1]), known)}"
    if kind == "missing":
        return "is missing"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a mapping of keys to values"
    message = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    if location and kind != "value_error" and isinstance(given, str | int | float | bool):
        return f"{message[0].lower()}{message[1:]}, not {given!r}"
    return message[0].lower() + message[1:] if location else message
