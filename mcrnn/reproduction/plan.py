"""What a table consists of: every combination of the values in a file, each a training with a name of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mcrnn.config.comparison import differences
from mcrnn.config.document import Document
from mcrnn.config.loading import in_name, load_search
from mcrnn.config.paths import Values
from mcrnn.config.sections import Configuration
from mcrnn.config.space import Search, Space
from mcrnn.data.checks import check_store_serves
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError, did_you_mean
from mcrnn.evaluation.compatibility import DataIdentity
from mcrnn.models import with_resolved_sizes
from mcrnn.runners.single_run import MAY_CHANGE
from mcrnn.storage.root import Storage
from mcrnn.tracking.provenance import source_line
from mcrnn.tracking.run_folder import RunFolder
from mcrnn.training.session import End

PAPER_FILES = (
    "search_spaces/paper/ns_s15_tf5.yaml",
    "search_spaces/paper/ns_s25_tf20.yaml",
    "search_spaces/paper/geopotential_s24_tf20.yaml",
)
"""The settings of Horuz et al. (2025), arXiv 2508.03614: all its architectures and seeds, with its hyperparameters."""
SEED = "train.seed"
UNNAMED = ("name", *MAY_CHANGE)
"""Settings that do not change what is trained, and are therefore no part of the names of runs."""


@dataclass(frozen=True)
class PlannedTraining:
    """One training of a table.

    Attributes:
        config: its configuration, whose name is that of the run.
        row: name of the row that it shares with the trainings of other seeds.
        folder: folder of the run.
    """

    config: Configuration
    row: str
    folder: RunFolder

    @property
    def uri(self) -> str:
        """The name of its model."""
        return f"runs/{self.config.name}"

    @property
    def end(self) -> End | None:
        """How it ended; None where it is to be trained, also once more after memory was not enough."""
        ended = self.folder.read_end()
        return None if ended is None or ended.end == End.OUT_OF_MEMORY else End(ended.end)

    @property
    def epochs_left(self) -> int:
        """Number of epochs that are still to be trained, at least one unless the training has ended."""
        return 0 if self.end else max(1, self.config.train.epochs - len(self.folder.read_metrics()))


@dataclass(frozen=True)
class Setting:
    """One table: all trainings on the same data with the same windows.

    Attributes:
        name: name of the table, which begins the names of its runs.
        source: which file was read.
        store: the field store, with the frames that it had when the first training of the file was started.
        trainings: the trainings, all architectures with one seed before those with the next.
    """

    name: str
    source: str
    store: FieldStore
    trainings: list[PlannedTraining]

    @property
    def rows(self) -> dict[str, list[PlannedTraining]]:
        """The trainings of each row, in the order of the file."""
        found: dict[str, list[PlannedTraining]] = {}
        for training in self.trainings:
            found.setdefault(training.row, []).append(training)
        return found

    @property
    def identity(self) -> DataIdentity:
        """What is the same in all models whose errors may stand in this table."""
        config = self.trainings[0].config
        field = FieldDescription.of(self.store, config.data)
        channels, height, width = field.frame_shape
        predicted = config.model.channels_out or channels
        return DataIdentity(field.store_digest, field.units, field.channels, (height, width), predicted)

    @cached_property
    def data(self) -> FieldData:
        """The training and validation splits, which are the same for all trainings; loaded when they are needed."""
        return FieldData.load(self.store, self.trainings[0].config.data)


def read_setting(
    file: str,
    storage: Storage,
    settings: Sequence[str] = (),
    architectures: Sequence[str] = (),
    seeds: int | None = None,
) -> Setting:
    """Read a table from a file with a space, and check that it can be trained before anything is.

    Runs are named as `python -m mcrnn.train` names them, so that those that it has trained are taken up. Values that
    are set in place of those in the file are part of the names.

    Where frames were appended to the store since a training of the file was started, the store is read as it was then,
    for all of its trainings: the errors of a table are of the same data, also where it is completed in parts.

    Args:
        file: path of the file, such as one of `PAPER_FILES`; see `mcrnn.config.document.find`.
        storage: the storage root.
        settings: settings of the form `field=value`, which take the place of values in the file.
        architectures: architectures to train; empty for all of the file.
        seeds: number of seeds of each row, the first ones of the file; None for all.

    Raises:
        UserError: the file has errors or no such architecture, the store is missing or does not fit, or a run of the
            same name has another configuration.
    """
    search = load_search(file, settings)
    given = Document.read(file, settings).settings
    name = "-".join([search.name, *(in_name(field, value) for field, value in given.items() if field not in UNNAMED)])
    of_file = []
    for values, config in _configurations(search, file):
        parts = {path: in_name(path, values[path]) for path in _open_fields(search.space, values)}
        row = "-".join(part for path, part in parts.items() if path != SEED) or config.model.architecture
        config = config.model_copy(update={"name": "-".join([name, *parts.values()])})
        folder = RunFolder(storage.location("runs").child(config.name))
        of_file.append(PlannedTraining(config, row, folder))
    known = {each.config.model.architecture for each in of_file}
    for architecture in architectures:
        if architecture not in known:
            raise UserError(f"{file} has no architecture '{architecture}'{did_you_mean(architecture, known)}")
    by_row: dict[str, list[PlannedTraining]] = {}
    for each in of_file:
        if not architectures or each.config.model.architecture in architectures:
            by_row.setdefault(each.row, []).append(each)
    chosen = [row[:seeds] for row in by_row.values()]
    planned = [each for seed in itertools.zip_longest(*chosen) for each in seed if each is not None]
    # no field of the section `data` that says which store it is can be searched
    store = _store_at_start(FieldStore.open(storage.location(planned[0].config.data.store)), planned, of_file)
    trainings = [_with_sizes(each, store) for each in planned]
    for training in trainings:
        _check_folder(training, store)
    return Setting(name, source_line(file), store, trainings)


def _store_at_start(
    store: FieldStore, planned: Sequence[PlannedTraining], of_file: Sequence[PlannedTraining]
) -> FieldStore:
    """Return a store as it was when the first training was started; as it is where none was.

    Args:
        store: the store as it is.
        planned: the trainings of the table.
        of_file: all trainings of the file, which count where none of the table was started.
    """
    started_with = _store_digests(planned) or _store_digests(of_file)
    earlier = (state["digest"] for state in store.history)
    return store.as_of(next((digest for digest in earlier if digest in started_with), None))


def _store_digests(trainings: Sequence[PlannedTraining]) -> set[str]:
    """Return the digests of the store with which trainings were started."""
    started = (each.folder.read_configuration() for each in trainings)
    return {content["store_digest"] for content in started if content is not None and "store_digest" in content}


def _with_sizes(training: PlannedTraining, store: FieldStore) -> PlannedTraining:
    """Return a training with the sizes of its network that follow from the store.

    Raises:
        UserError: the store does not fit.
    """
    check_store_serves(store, training.config)
    field = FieldDescription.of(store, training.config.data)
    config = with_resolved_sizes(training.config, field.frame_shape, len(field.inputs))
    _check_units(store, field, config)
    return replace(training, config=config)


def check_names(settings: Sequence[Setting]) -> None:
    """Refuse tables whose trainings have the same names: one would show the runs of the other.

    Raises:
        UserError: two tables have a training of the same name.
    """
    names = Counter(training.config.name for setting in settings for training in setting.trainings)
    name, count = names.most_common(1)[0]
    if count > 1:
        raise UserError(
            f"several of these files have a training named '{name}': give each a name of its own in its field 'name', "
            "or a command of its own with --set name=NAME, which is for one file"
        )


def _configurations(search: Search, file: str) -> Iterator[tuple[Values, Configuration]]:
    """Yield every combination of values with its configuration.

    Raises:
        UserError: an entry of the space has no finite number of values.
    """
    try:
        yield from ((values, search.configuration(values)) for values in search.space.grid())
    except ValueError as error:  # pydantic's, which is one too, cannot occur: the file has been checked
        raise UserError(f"{file}: {error}") from None


def _open_fields(space: Space, values: Values) -> list[str]:
    """Return the fields of a combination for which the file has several values."""
    entries = {path: space.active_entry(path, values) for path in space}
    return [path for path, entry in entries.items() if entry is not None and entry.only_value is None]


def _check_units(store: FieldStore, field: FieldDescription, config: Configuration) -> None:
    """Refuse channels of several units: the paper's error is a mean over the channels."""
    if len(set(store.units_of(field.channels[: config.model.channels_out]))) > 1:
        raise UserError(
            f"the channels of '{store.name}' have several units ({field.units}), over which the paper's error has no "
            "mean: name one in data.variables"
        )


def _check_folder(training: PlannedTraining, store: FieldStore) -> None:
    """Refuse a run of the same name that was started with another configuration."""
    before = training.folder.read_configuration()
    now = {**training.config.model_dump(), "store_digest": store.digest}
    changed = {} if before is None else differences(before, now)
    if refused := [text for path, text in changed.items() if path not in MAY_CHANGE]:
        raise UserError(
            f"'{training.folder.url}' was started with another configuration: {'; '.join(refused)}. Give the table "
            "another name in its file, or by --set name=ns2, which is for a command of one file"
        )
