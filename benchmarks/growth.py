"""What a search costs beside training as its trials become many: on disk, on S3 and in PostgreSQL.

    python -m benchmarks.growth [--trials 300 1000 3000 10000] [--places disk s3 postgresql] [--workers 500]

The study of search_spaces/ns.yaml is filled with trials of 30 epochs, and is then taken up and continued through the
classes of a live search. Printed are, for each number of trials, the median time of a proposal and of the end of a
trial, the time to take the search up again, and what a trial has sent to S3. S3 is moto, and PostgreSQL is Debian's;
both run on this machine, so that their network takes no time.

Then 500 workers with trials of ten minutes work on a simulated clock. What the search computes between two events is
measured, and added to the clock, so that a worker which waits for the search is idle.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import optuna

from benchmarks.growth_filling import EPOCHS, fill_database, journal_lines, result, simulated_workers, space
from mcrnn.config.space import Search
from mcrnn.search.journal import LOGS_BETWEEN_CHECKPOINTS, Journal
from mcrnn.search.study import open_study
from mcrnn.search.superseded_files import SupersededFiles
from mcrnn.search.tune_adapter import StudyScheduler, StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.outbox import Outbox
from mcrnn.storage.parts import UploadedParts
from mcrnn.storage.s3 import S3Prefix
from mcrnn.tracking.run_folder import SearchFolder
from tests.support.postgres import PostgresServer, programs

CLOCK = [time.perf_counter]
"""What times are measured with: the time that passes, or with --processor-time that of this process."""
PROPOSALS = 15
"""New trials that are proposed for each row."""


class ActiveStudy:
    """A search that has been taken up, as far as it does not concern Ray, MLflow and the trainings."""

    def __init__(self, folder: Location, search: Search) -> None:
        started = CLOCK[0]()
        self.journal = Journal.open(folder)
        self.study = open_study(self.journal, search)
        self.searcher = StudySearcher(self.study, search, self._changed)
        self.superseded = SupersededFiles(SearchFolder(folder), self.study, 3, self.searcher.index)
        self.seconds = CLOCK[0]() - started
        """How long it took."""
        self.scheduler, self.outbox = StudyScheduler(self.searcher), Outbox("S3")
        self.epochs: dict[str, tuple[int, int]] = {}
        """First and last epoch of the part of a trial that was proposed last, by Tune's id."""

    def _changed(self) -> None:
        self.journal.checkpoint()
        if self.journal.is_remote:
            self.outbox.put("journal", self.journal.upload)

    def propose(self, trial_id: str) -> float:
        """Let a trial be proposed; returns the seconds."""
        started = CLOCK[0]()
        proposal = self.searcher.suggest(trial_id)
        took = CLOCK[0]() - started
        assert isinstance(proposal, dict), proposal
        number, target = proposal["number"], proposal["target"]
        reached = self.searcher.index.trial(number).intermediate_values
        self.epochs[trial_id] = max(reached, default=0) + 1, target
        return took

    def first_epoch(self, trial_id: str) -> int:
        """Return the epoch from which a trial is trained."""
        return self.epochs[trial_id][0]

    def last_epoch(self, trial_id: str) -> int:
        """Return the epoch to which it is trained."""
        return self.epochs[trial_id][1]

    def report(self, trial_id: str, epoch: int, error: float) -> float:
        """Let an epoch be reported; returns the seconds."""
        started = CLOCK[0]()
        self.scheduler.on_trial_result(None, ReportingTrial(trial_id), result(error, epoch))
        return CLOCK[0]() - started

    def end(self, trial_id: str, error: float) -> float:
        """Let a trial end, or be paused; returns the seconds."""
        number, last = self.searcher.running[trial_id].number, self.last_epoch(trial_id)
        started = CLOCK[0]()
        self.searcher.on_trial_complete(trial_id, result(error, last))
        self.superseded.trial_ended(number, self.outbox.put)
        return CLOCK[0]() - started

    def close(self) -> None:
        """Send what is to be sent."""
        self.outbox.wait()
        self.outbox.close()


class ReportingTrial:
    """A trial of Ray Tune as far as a scheduler looks at it."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class CountingFolder(LocalFolder):
    """Stands for object storage, and counts the bytes that are sent to it."""

    sent = 0

    def write(self, key: str, data: bytes) -> None:
        type(self).sent += len(data)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / key).write_bytes(data)


def measure(active: ActiveStudy) -> tuple[float, float]:
    """Return the median seconds of the proposal of a new trial, whose values are drawn, and of an ending or a pause."""
    proposals: list[float] = []
    endings: list[float] = []
    for trial_id in map(str, itertools.count()):
        seconds = active.propose(trial_id)
        if active.first_epoch(trial_id) == 1:  # not a paused trial that goes on
            proposals.append(seconds)
        endings.append(active.end(trial_id, 0.5))
        if len(proposals) == PROPOSALS:
            break
    active.close()
    return statistics.median(proposals), statistics.median(endings)


def fill_journal(folder: Location, lines: list[str], count: int) -> None:
    """Write the journal of many trials, with its snapshot, to where a search looks for it."""
    with tempfile.TemporaryDirectory() as temporary:
        local = LocalFolder(Path(temporary)) if isinstance(folder, S3Prefix) else folder
        journal = Journal.open(local)
        each = sum(trial.count("\n") for trial in lines[1:]) / (len(lines) - 1)
        tail = min(
            count, int(LOGS_BETWEEN_CHECKPOINTS / each)
        )  # the most trials there can be since the last checkpoint
        journal.file.write_text("".join(lines[: count - tail + 1]))
        journal.storage()
        journal.checkpoint()
        with journal.file.open("a") as file:
            file.write("".join(lines[count - tail + 1 : count + 1]))
        if isinstance(folder, S3Prefix):
            remote = Journal.open(folder)
            remote.file.write_bytes(journal.file.read_bytes())
            if journal._snapshot_file.exists():
                remote._snapshot_file.write_bytes(journal._snapshot_file.read_bytes())
            remote.storage()
            remote.upload()


def bytes_sent(lines: list[str], count: int, folder: Path) -> int:
    """Return the bytes that the journal and the snapshot of a search send, uploaded when a trial starts and ends."""

    class Counting(CountingFolder):
        """With a count of its own."""

    journal = Journal.open(LocalFolder(folder))
    journal.file.write_text(lines[0])
    storage = journal.storage()
    journal.folder = Counting(folder / "remote")
    journal._parts = UploadedParts(journal.file, Counting(folder / "journal"))
    journal._snapshot_parts = UploadedParts(journal._snapshot_file, Counting(folder / "snapshot"))
    journal._snapshot_restarts = False
    for trial in lines[1 : count + 1]:
        start = trial.index('"result"')
        start = trial.rindex("\n", 0, start) + 1
        for part in (trial[:start], trial[start:]):
            with journal.file.open("a") as file:
                file.write(part)
            storage.get_all_studies()  # reads the new lines
            journal.checkpoint()
            journal.upload()
    return Counting.sent


@contextlib.contextmanager
def places(names: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Start the services that are asked for; yields them by name."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Any] = {"disk": folder} if "disk" in names else {}
        if "s3" in names:
            # It has a process of its own, as a real one has: its work is not the search's.
            command = [sys.executable, "-m", "tests.support.s3_server"]
            server = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert server.stdout is not None
            os.environ.update(json.loads(server.stdout.readline()))
            boto3.client("s3").create_bucket(Bucket="lab")
            found["s3"] = server
        if "postgresql" in names and (here := programs()) is not None:
            postgres = PostgresServer(here)
            stack.callback(postgres.remove)
            found["postgresql"] = postgres
        yield found


def rows(place: str, service: Any, lines: list[str], counts: list[int], folder: Path) -> Iterator[str]:
    """Yield a row for each number of trials."""
    numbers = itertools.count()
    for count in counts:
        name = f"{place}-{next(numbers)}"
        search, location = space(), LocalFolder(folder / name)
        where: Location = S3Prefix(f"lab/{name}") if place == "s3" else location
        if place == "postgresql":
            search = space(storage=service.url)
            fill_database(service.url, open_study(Journal.open(where), search), lines[1 : count + 1])
        else:
            fill_journal(where, lines, count)
        resumed = statistics.median(take_up(where, search) for _ in range(3))
        proposal, ending = measure(ActiveStudy(where, search))
        sent = f"{bytes_sent(lines, count, folder / f'{name}-sent') / 1e6:8.1f} MB" if place == "s3" else ""
        yield f"{place:10s} {count:7d} {1000 * proposal:9.0f} ms {1000 * ending:7.0f} ms {resumed:8.2f} s {sent}"


def take_up(folder: Location, search: Search) -> float:
    """Return the seconds that it takes to take a search up."""
    active = ActiveStudy(folder, search)
    active.close()
    return active.seconds


def main() -> None:
    """Print a row for each place and number of trials, then that of the simulated workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[300, 1000, 3000, 10_000])
    parser.add_argument("--places", nargs="+", default=["disk", "s3", "postgresql"])
    parser.add_argument("--workers", type=int, default=500, help="simulated workers; 0 for no simulation")
    parser.add_argument(
        "--processor-time", action="store_true", help="measure this process instead of the clock, on a busy machine"
    )
    arguments = parser.parse_args()
    if arguments.processor_time:
        CLOCK[0] = time.process_time
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="mcrnn-growth-") as temporary:
        folder = Path(temporary)
        lines = journal_lines(max(arguments.trials), folder / "template")
        print(f"trials of {EPOCHS} epochs, {len(''.join(lines)) / (len(lines) - 1) / 1000:.1f} kB of journal each")
        print("place       trials    proposal     ending   taking up   sent to S3", flush=True)
        with places(arguments.places, folder) as found:
            for place, service in found.items():
                for row in rows(place, service, lines, arguments.trials, folder):
                    print(row, flush=True)
        if arguments.workers:
            fill_journal(LocalFolder(folder / "simulated"), lines, max(arguments.trials))
            active = ActiveStudy(LocalFolder(folder / "simulated"), space())
            print(json.dumps(simulated_workers(active, arguments.workers)), flush=True)
            active.close()


if __name__ == "__main__":
    main()
