"""Snapshots of a study, from which a search is taken up without replaying its whole journal.

A snapshot is a file of lines beside the journal. Each checkpoint appends a line for every trial that has changed since
the one before, and then a line that says how far the journal was replayed by then. So writing costs as much as has
changed, and reading costs one line for each trial. The snapshot is a cache: where it is missing, torn or not of this
journal, the journal is replayed instead.

Downloading what is needed of a study (`download_needed`) and reading the lines (`lines`) need no Optuna; only building
its trials from them does (`load`).

A line is a key, a tab and JSON. The key is the number of a trial, `kind` for the parameters that trials have in common,
or `checkpoint`. A checkpoint has the checksum of all lines before it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcrnn.errors import UserError
from mcrnn.storage.location import Location
from mcrnn.storage.parts import UploadedParts
from mcrnn.storage.retry import ServiceUnavailableError
from mcrnn.tracking.run_folder import JOURNAL_FILE

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

CHECKED_BYTES = 4096
"""Bytes of the journal before a position whose checksum tells whether a snapshot is of this journal. With their times
and random ids they are in no other one."""
FORMAT = 1
"""Version of the lines. Snapshots of another version are not used."""

Kind = tuple[tuple[str, str], ...]
"""Names and distributions, as JSON, of the parameters of a trial in their order."""


@dataclass
class StudyState:
    """The state of a study, or what has changed of it since the checkpoint before."""

    position: dict[str, Any]
    """How far the journal was replayed."""
    study: dict[str, Any]
    """Name, directions and attributes of the study."""
    trials: list[FrozenTrial]
    """The trials in the order of their numbers."""


@dataclass
class SnapshotLines:
    """What a checkpoint says, as the lines have it."""

    position: dict[str, Any]
    """How far the journal was replayed."""
    study: dict[str, Any]
    """Name, directions and attributes of the study."""
    kinds: list[Kind]
    """The kinds of trials, by the index by which the trials name them."""
    trials: list[bytes]
    """JSON of each trial in the order of their numbers."""
    end: int
    """Offset of the first byte behind the checkpoint."""


class StudySnapshot:
    """The snapshot file of a study.

    Only the process that runs the search may extend it.

    Args:
        file: the file, which need not exist.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.end = 0
        """Number of bytes that are used; what is behind them is not of this journal, and is written over."""
        try:
            self._content = file.read_bytes()
        except FileNotFoundError:
            self._content = b""
        self._checksum = 0
        """Of the bytes that are used."""
        self._kinds: dict[Kind, int] = {}

    def checkpoints(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield start and end of each checkpoint's own line and the checkpoint, the last one first."""
        end = self._content.rfind(b"\n") + 1
        while (start := self._content.rfind(b"checkpoint\t", 0, end)) >= 0:
            with contextlib.suppress(ValueError, LookupError, TypeError):
                checkpoint = json.loads(self._content[start:end].split(b"\t")[1].split(b"\n")[0])
                if checkpoint["format"] == FORMAT:
                    yield start, self._content.index(b"\n", start) + 1, checkpoint
            end = start

    def load(self, is_current: Callable[[dict[str, Any]], bool]) -> StudyState | None:
        """Return the state of the last checkpoint that can be used, None where there is none.

        Args:
            is_current: whether a position is one of the journal that is there.
        """
        for lines in self.lines(is_current):
            with without_garbage_collection(), contextlib.suppress(ValueError, LookupError, TypeError):
                trials = _trials(lines)
                self._kinds = {kind: index for index, kind in enumerate(lines.kinds)}
                self.end, self._checksum = lines.end, zlib.crc32(self._content[: lines.end])
                self._content = b""
                return StudyState(lines.position, lines.study, trials)
        self._kinds, self._content = {}, b""
        return None

    def lines(self, is_current: Callable[[dict[str, Any]], bool]) -> Iterator[SnapshotLines]:
        """Yield what the checkpoints say that can be used, the last one first.

        Args:
            is_current: whether a position is one of the journal that is there.
        """
        for start, end, checkpoint in self.checkpoints():
            found = None
            with without_garbage_collection(), contextlib.suppress(ValueError, LookupError, TypeError):
                if zlib.crc32(self._content[:start]) != checkpoint["checksum"] or not is_current(
                    checkpoint["position"]
                ):
                    continue
                kinds: dict[Kind, None] = {}
                newest: dict[bytes, bytes] = {}
                for line in self._content[:start].split(b"\n"):
                    key, _, content = line.partition(b"\t")
                    if key == b"kind":
                        kinds[tuple((name, distribution) for name, distribution in json.loads(content))] = None
                    elif key.isdigit():  # of several lines of one trial, the last one counts
                        newest[key] = content
                trials = [newest[b"%d" % number] for number in range(len(newest))]
                found = SnapshotLines(checkpoint["position"], checkpoint["study"], list(kinds), trials, end)
            if found is not None:
                yield found

    def append(self, changes: StudyState) -> None:
        """Write a checkpoint.

        Args:
            changes: the study, and the trials that have changed since the last checkpoint.
        """
        lines = "".join(line for trial in changes.trials for line in self._lines(trial)).encode()
        checksum = zlib.crc32(lines, self._checksum)
        checkpoint = {"format": FORMAT, "checksum": checksum, "position": changes.position, "study": changes.study}
        last_line = f"checkpoint\t{_json(checkpoint)}\n".encode()
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.truncate(self.end)
            file.seek(self.end)
            file.write(lines + last_line)
        self._checksum = zlib.crc32(last_line, checksum)
        self.end += len(lines) + len(last_line)

    def _lines(self, trial: FrozenTrial) -> Iterable[str]:
        """Return the lines of a trial, with that of its kind if it is the first one of it."""
        from optuna.distributions import distribution_to_json

        kind = tuple((name, distribution_to_json(each)) for name, each in trial.distributions.items())
        if kind not in self._kinds:
            self._kinds[kind] = len(self._kinds)
            yield f"kind\t{_json(kind)}\n"
        content = [
            int(trial.state),
            trial.values,
            [None if time is None else time.timestamp() for time in (trial.datetime_start, trial.datetime_complete)],
            self._kinds[kind],
            [trial.distributions[name].to_internal_repr(value) for name, value in trial.params.items()],
            trial.user_attrs,
            trial.system_attrs,
            [list(trial.intermediate_values), list(trial.intermediate_values.values())],
        ]
        yield f"{trial.number}\t{_json(content)}\n"


def _trials(lines: SnapshotLines) -> list[FrozenTrial]:
    """Build all trials of a checkpoint. Trials of one kind share their distributions, which nothing changes."""
    from optuna.distributions import json_to_distribution
    from optuna.trial import FrozenTrial, TrialState

    kinds = [{name: json_to_distribution(distribution) for name, distribution in kind} for kind in lines.kinds]

    def trial(number: int, content: bytes) -> FrozenTrial:
        state, values, times, kind, params, user_attrs, system_attrs, (steps, errors) = json.loads(content)
        distributions = kinds[kind]
        started, completed = (None if time is None else datetime.fromtimestamp(time) for time in times)
        return FrozenTrial(
            number=number,
            trial_id=number,
            state=TrialState(state),
            value=None,
            values=values,
            datetime_start=started,
            datetime_complete=completed,
            params={
                name: distribution.to_external_repr(value)
                for (name, distribution), value in zip(distributions.items(), params, strict=True)
            },
            distributions=dict(distributions),
            user_attrs=user_attrs,
            system_attrs=system_attrs,
            intermediate_values=dict(zip(steps, errors, strict=True)),
        )

    return [trial(number, content) for number, content in enumerate(lines.trials)]


def holds(journal: Path, position: dict[str, Any]) -> bool:
    """Return whether a checkpoint was made of this journal, and of nothing that has been cut off since."""
    offset = position["offset"]
    return offset <= journal.stat().st_size and checksum_before(journal, offset) == position["checksum"]


def checksum_before(journal: Path, offset: int) -> int:
    """Return the checksum of the bytes of a journal before an offset, by which a position is recognised."""
    with journal.open("rb") as file:
        start = max(0, offset - CHECKED_BYTES)
        file.seek(start)
        return zlib.crc32(file.read(offset - start))


def download_needed(journal: UploadedParts, snapshot: UploadedParts, folder: Location) -> bool:
    """Download the snapshot of a study, and what its journal says beyond it.

    Earlier versions kept the journal as one object, which is deleted once there are parts.

    Args:
        journal: the parts of the journal.
        snapshot: those of the snapshot.
        folder: folder of the search.

    Returns:
        Whether there is a journal.

    Raises:
        ServiceUnavailableError: the folder cannot be reached.
        UserError: the journal is damaged. A damaged snapshot is left out: it is only a cache.
    """
    snapshot.file.unlink(missing_ok=True)  # it may be one of a search that was deleted
    if not journal.find():
        with contextlib.suppress(FileNotFoundError):
            journal.file.write_bytes(folder.read(JOURNAL_FILE))
            return True
        return False
    try:
        if snapshot.find():
            snapshot.download()
    except ServiceUnavailableError:
        raise
    except UserError:
        snapshot.file.unlink(missing_ok=True)
    *_, last = next(StudySnapshot(snapshot.file).checkpoints(), (None,))
    journal.download(max(0, last["position"]["offset"] - CHECKED_BYTES) if last else 0)
    return True


def _json(content: object) -> str:
    return json.dumps(content, separators=(",", ":"))


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep Python from looking for cycles among many new objects, which takes longer than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
