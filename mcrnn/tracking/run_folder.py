"""The folders of runs and searches: the name and the format of every file in them.

A run is a training, a baseline or an evaluation. The folder of a training holds

    configuration.json   what the training was started with (single trainings only); another configuration is refused
    record.json          what the run is: name, tags, parameters, data set, and the key by which MLflow knows it
    metrics.jsonl        one line of metrics an epoch
    run.json             how much of all this MLflow has
    checkpoints/         the newest states of the training
    model/               the best model so far
    end.json             how the training ended; missing while it runs and after an interruption
    process.json         which process trains, where, and how far it is; only in single trainings
    stop.json            a request to this process to stop
    lock.json            the lease of the process that trains the run; only in single trainings

and the folder of a search

    configuration.json, record.json, metrics.jsonl, run.json   as above
    study.journal        the Optuna study, unless it is in a database; on object storage in parts, below journal/
    study.journal.snapshot   what the journal says up to some line, from which a search is taken up quickly; on object
                         storage in parts, below snapshot/
    study.json           name of the study in a database, where it is not the usual one
    lock.json            the lease of the process that drives the search
    process.json, stop.json   as above, of that process
    driver.log           what went wrong in it
    trials/0000/ ...     one training for each trial
    confirmation/NAME/   trainings of the best configurations with other seeds
    ensemble/            the ensemble, where one was asked for
    baselines/NAME/      the errors of persistence and climatology
    figures/             pictures of the result
    report.html          a page with all that is known of the search, written while it runs and when it ends
    packing.json         what trials were measured to take of a GPU, with search.gpus: auto
    summary.json         the result, once the search has finished
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from mcrnn.errors import DamagedFileError, UserError
from mcrnn.passwords import mask_passwords, without_passwords
from mcrnn.storage.location import Location

CONFIGURATION_FILE = "configuration.json"
"""File of a folder, and artifact of a training's run in MLflow."""
MACHINE_FILE = "machine.json"
ORIGIN_FILE = "origin.json"
"""Artifacts of a run in MLflow: the machine, and the command with its packages; see `mcrnn.tracking.provenance`."""
RECORD_FILE = "record.json"
METRICS_FILE = "metrics.jsonl"
SYNC_FILE = "run.json"
END_FILE = "end.json"
ERROR_FILE = "error.txt"
MODEL_FOLDER = "model"
CHECKPOINT_FOLDER = "checkpoints"

JOURNAL_FILE = "study.journal"
SNAPSHOT_FILE = "study.journal.snapshot"
JOURNAL_PARTS = "journal"
SNAPSHOT_PARTS = "snapshot"
"""Folders for the two files on object storage."""
STUDY_FILE = "study.json"
LEASE_FILE = "lock.json"
DRIVER_LOG = "driver.log"
SUMMARY_FILE = "summary.json"
PACKING_FILE = "packing.json"
PAGE_FILE = "report.html"
TRIALS_FOLDER = "trials"
CONFIRMATION_FOLDER = "confirmation"


@dataclass(frozen=True)
class RunEnd:
    """How a training ended."""

    end: str
    """A value of `mcrnn.training.session.End`."""
    message: str
    """The error, where memory was not enough; else empty."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; plain data, so that it can be sent to workers."""

    location: Location

    @property
    def url(self) -> str:
        """The path or URL of the folder."""
        return self.location.url

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def model(self) -> Location:
        """The folder of the best model so far."""
        return self.location.child(MODEL_FOLDER)

    @property
    def checkpoints(self) -> Location:
        """The folder of the checkpoints."""
        return self.location.child(CHECKPOINT_FOLDER)

    def clear(self) -> None:
        """Delete everything in the folder."""
        self.location.clear()

    def read_configuration(self) -> dict[str, Any] | None:
        """Return what the training or search was started with, None for a folder that is not in use."""
        return self._read_json(CONFIGURATION_FILE)

    def claim(self, configuration: dict[str, Any], may_change: tuple[str, ...] = ()) -> None:
        """Write the configuration down, or check that the folder belongs to the same one.

        A field that only one of the two gives is its default in the other; see `mcrnn.config.comparison`.

        Args:
            configuration: everything that determines the results. Its passwords are neither written nor compared.
            may_change: dotted paths of the values that may differ from those in the folder.

        Raises:
            UserError: the folder belongs to another configuration; the message names what differs.
        """
        # only here, so that commands which only look at folders start at once
        from mcrnn.config.comparison import differences

        recorded = self.read_configuration()
        before, configuration = without_passwords(recorded), without_passwords(configuration)
        if before is not None:
            changed = differences(before, configuration)
            if before == recorded and not changed:
                return  # what a finished search has written stays as it is
            if refused := [text for path, text in changed.items() if path not in may_change]:
                raise UserError(
                    f"'{self.url}' was started with another configuration: {'; '.join(refused)}. "
                    "Start a new one beside it with --new"
                )
        self._write_json(CONFIGURATION_FILE, configuration, indent=1)

    def read_record(self) -> dict[str, Any] | None:
        """Return what `write_record` wrote, None before."""
        return self._read_json(RECORD_FILE)

    def write_record(
        self,
        name: str,
        *,
        tags: dict[str, str],
        params: dict[str, Any] | None = None,
        files: dict[str, Any] | None = None,
        dataset: dict[str, Any] | None = None,
    ) -> None:
        """Write down what the run is, for its run in MLflow; a record that is there already stays.

        Args:
            name: name of the run.
            tags: tags of the run.
            params: nested parameters; MLflow gets them under dotted names.
            files: content of JSON artifacts by file name.
            dataset: name, source, digest, recipe and schema of the data that the run uses.
        """
        if self.read_record() is not None:
            return
        record = {
            "key": uuid.uuid4().hex,
            "name": name,
            "tags": tags,
            "params": params or {},
            "files": files or {},
            "dataset": dataset,
            "time": time.time(),
        }
        self._write_json(RECORD_FILE, without_passwords(record), indent=1)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of the epochs so far, the first epoch first; without a last line that was cut off.

        Raises:
            DamagedFileError: another line is damaged.
        """
        try:
            lines = self.location.read(METRICS_FILE).splitlines(keepends=True)
        except FileNotFoundError:
            return []
        epochs = []
        for number, line in enumerate(lines, 1):
            try:
                epochs.append(json.loads(line))
            except ValueError:
                if number == len(lines) and not line.endswith(b"\n"):
                    break
                raise DamagedFileError(f"line {number} of '{self.url}/{METRICS_FILE}' is damaged") from None
        return epochs

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Write the metrics of all epochs so far, in place of what is there."""
        lines = "".join(f"{json.dumps(epoch)}\n" for epoch in epochs)
        self.location.write(METRICS_FILE, lines.encode())

    def read_sync_state(self) -> dict[str, Any]:
        """Return how much of the folder is in MLflow and in which run; see `mcrnn.tracking.sync`."""
        return self._read_json(SYNC_FILE) or {}

    def write_sync_state(self, state: dict[str, Any]) -> None:
        """Write down how much of the folder is in MLflow."""
        self._write_json(SYNC_FILE, state)

    def read_end(self) -> RunEnd | None:
        """Return how the training ended, None while it runs and after an interruption."""
        content = self._read_json(END_FILE)
        return None if content is None else RunEnd(content["end"], content["message"])

    def write_end(self, end: RunEnd) -> None:
        """Write down how the training ended."""
        self._write_json(END_FILE, {"end": end.end, "message": end.message})

    def delete_end(self) -> None:
        """Let a training that ended go on."""
        self.location.delete(END_FILE)

    def write_error(self, traceback: str) -> str:
        """Keep a traceback in the folder; returns the URL of the file."""
        self.location.write(ERROR_FILE, mask_passwords(traceback).encode())
        return f"{self.url}/{ERROR_FILE}"

    def _read_json(self, name: str) -> Any:
        try:
            return json.loads(self.location.read(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise DamagedFileError(f"'{self.url}/{name}' is damaged: it is not JSON") from None

    def _write_json(self, name: str, content: Any, indent: int | None = None) -> None:
        self.location.write(name, json.dumps(content, indent=indent).encode())


@dataclass(frozen=True)
class SearchFolder(RunFolder):
    """The folder of a search, with the folders of its trainings below it."""

    def trial(self, number: int) -> RunFolder:
        """Return the folder of a trial."""
        return RunFolder(self.location.child(f"{TRIALS_FOLDER}/{number:04d}"))

    @property
    def trials(self) -> Location:
        """The folder that holds the folders of the trials."""
        return self.location.child(TRIALS_FOLDER)

    def retraining(self, name: str) -> RunFolder:
        """Return the folder of one training of the confirmation."""
        return RunFolder(self.confirmation.child(name))

    @property
    def confirmation(self) -> Location:
        """The folder that holds the trainings of the confirmation."""
        return self.location.child(CONFIRMATION_FOLDER)

    @property
    def ensemble(self) -> RunFolder:
        """The folder of the ensemble."""
        return RunFolder(self.location.child("ensemble"))

    def baseline(self, name: str) -> RunFolder:
        """Return the folder of a baseline's errors."""
        return RunFolder(self.location.child(f"baselines/{name}"))

    def study_name(self, search: str) -> str:
        """Return the name of the study, where it is in a database.

        Args:
            search: name of the search in its configuration.
        """
        content = self._read_json(STUDY_FILE)
        return self.usual_study_name(search) if content is None else content["name"]

    def usual_study_name(self, search: str) -> str:
        """Return the name that the study in a database has unless `write_study_name` has given it another one."""
        return f"{search}:{self.url}"

    def write_study_name(self, name: str) -> None:
        """Use another name for the study than the usual one."""
        self._write_json(STUDY_FILE, {"name": name})

    def read_summary(self) -> dict[str, Any] | None:
        """Return the result of the search, None before it has finished."""
        return self._read_json(SUMMARY_FILE)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the result of the search."""
        self._write_json(SUMMARY_FILE, summary, indent=1)

    def delete_summary(self) -> None:
        """Delete the result of a search that goes on."""
        self.location.delete(SUMMARY_FILE)

    def read_packing(self) -> dict[str, Any] | None:
        """Return what trials were measured to take of a GPU, None if they were not."""
        return self._read_json(PACKING_FILE)

    def write_packing(self, measured: dict[str, Any]) -> None:
        """Keep what trials were measured to take of a GPU."""
        self._write_json(PACKING_FILE, measured, indent=1)

    def write_figure(self, name: str, picture: bytes) -> None:
        """Keep a picture of the result."""
        self.location.write(f"figures/{name}", picture)


def free_name(parent: Location, name: str, *, new: bool) -> str:
    """Return the name of the folder for a run or search.

    Args:
        parent: the folder that holds all runs, or all searches.
        name: the name in the configuration.
        new: True for a folder beside those in use: the first free one of NAME, NAME-2, NAME-3, ...
    """
    chosen, number = name, 1
    while new and RunFolder(parent.child(chosen)).read_configuration() is not None:
        number += 1
        chosen = f"{name}-{number}"
    return chosen
