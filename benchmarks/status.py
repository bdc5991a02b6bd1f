"""What it takes to look at a search of many trials with `python -m mcrnn.status`, and what that costs the search.

    python -m benchmarks.status [--trials 300 10000] [--places disk s3 postgresql] [--repeats 5]

The study of search_spaces/ns.yaml is filled with trials of 30 epochs, as in `benchmarks.growth`, and looked at as a
user does: by a new Python process, whose start is included. Printed are, for each number of trials, the median time of
`mcrnn.status` (all searches) and of `mcrnn.status NAME`, the processor time of the latter, and what a further look of
`--watch` takes. S3 is moto, and PostgreSQL is Debian's; both run on this machine, so that their network takes no time.

Then the search on disk proposes and ends trials while another process watches it, and while none does, in turns of
random order. A third of the turns is alone once more: by as much as these differ, the difference to those that are
watched may be noise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna

from benchmarks.growth import ActiveStudy, fill_journal, places
from benchmarks.growth_filling import fill_database, journal_lines, space
from mcrnn.config.space import Search
from mcrnn.search.journal import Journal
from mcrnn.search.overview import WatchedSearch
from mcrnn.search.study import open_study
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.parts import UploadedParts
from mcrnn.storage.presence import Presence
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import JOURNAL_FILE, JOURNAL_PARTS, SNAPSHOT_FILE, SNAPSHOT_PARTS, SearchFolder

NAME = "many"
BYTES_AT_ONCE = 2**19
"""Bytes of a journal that are uploaded at a time; less would only take longer, for parts are merged."""
TURNS = 6
"""Turns of each kind."""
TRIALS_A_TURN = 20


def prepared(storage: Storage, lines: list[str], count: int, url: str | None) -> tuple[Search, SearchFolder]:
    """Return a search of many trials and its folder, as a driver leaves it."""
    search = space(storage=url)
    folder = SearchFolder(storage.location(f"searches/{NAME}"))
    folder.claim(json.loads(json.dumps(search.content())))
    if url is None and storage.is_local:
        fill_journal(folder.location, lines, count)
    elif url is None:
        with tempfile.TemporaryDirectory() as temporary:
            fill_journal(LocalFolder(Path(temporary)), lines, count)
            upload(Path(temporary), folder)
    else:
        fill_database(url, open_study(Journal.open(folder.location), search), lines[1 : count + 1])
    return search, folder


def upload(local: Path, folder: SearchFolder) -> None:
    """Upload a journal and its snapshot bit by bit, as a search that runs does, so that there are as many parts."""
    for name, parts in ((JOURNAL_FILE, JOURNAL_PARTS), (SNAPSHOT_FILE, SNAPSHOT_PARTS)):
        if not (local / name).exists():
            continue
        uploaded, size = UploadedParts(local / name, folder.location.child(parts)), (local / name).stat().st_size
        for end in [*range(BYTES_AT_ONCE, size, BYTES_AT_ONCE), size]:
            uploaded.upload(end)


def command(storage: Storage, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Start `python -m mcrnn.status` on a storage root."""
    environment = os.environ | {"MCRNN_STORAGE": storage.name, "PGPASSWORD": "secret"}
    return subprocess.Popen([sys.executable, "-m", "mcrnn.status", *words], env=environment, text=True, **options)


def seconds_of(storage: Storage, *words: str) -> tuple[float, float]:
    """Return the seconds that a call takes by the clock, and of processor time."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = command(storage, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, errors = process.communicate()
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 0, errors
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows(place: str, service: Any, lines: list[str], counts: list[int], folder: Path, repeats: int) -> Iterator[str]:
    """Yield a row for each number of trials."""
    for count in counts:
        root = f"s3://lab/{count}" if place == "s3" else str(folder / f"{place}-{count}")
        storage = Storage.open(root)
        url = service.url if place == "postgresql" else None
        _, searched = prepared(storage, lines, count, url)
        with Presence(searched.location, {}, lambda _: None) as presence:
            presence.progress = {"done": count, "budget": count, "best": 0.5}
            presence.write()
            listed = statistics.median(seconds_of(storage)[0] for _ in range(repeats))
            took, processor = zip(*(seconds_of(storage, NAME) for _ in range(repeats)), strict=True)
            os.environ["PGPASSWORD"] = "secret"
            watched = WatchedSearch(storage, NAME)
            watched.refresh()
            looks = []
            for _ in range(repeats):
                started = time.perf_counter()
                watched.refresh()
                watched.rows(30)
                looks.append(time.perf_counter() - started)
        yield (
            f"{place:10s} {count:7d} {listed:9.2f} s {statistics.median(took):9.2f} s "
            f"{statistics.median(processor):9.2f} s {1000 * statistics.median(looks):9.1f} ms"
        )


def turn(active: ActiveStudy, numbers: Iterator[int]) -> list[tuple[float, float]]:
    """Return for each of some new trials what its proposal and its end cost: seconds by the clock, and of processor."""
    found: list[tuple[float, float]] = []
    while len(found) < TRIALS_A_TURN:
        number, started = str(next(numbers)), time.process_time()
        proposal = active.propose(number)
        is_new = active.first_epoch(number) == 1  # a paused trial that goes on costs much less
        seconds = proposal + active.end(number, 0.5)
        if is_new:
            found.append((seconds, time.process_time() - started))
    return found


def cost_of_watching(lines: list[str], count: int, folder: Path) -> Iterator[str]:
    """Yield lines: what a new trial costs the search alone, once more alone, which shows the noise, and watched."""
    storage = Storage.open(str(folder / "watched"))
    search, searched = prepared(storage, lines, count, None)
    active, numbers, draw = ActiveStudy(searched.location, search), iter(range(10**9)), random.Random(0)
    times: dict[str, list[tuple[float, float]]] = {"alone": [], "alone again": [], "watched": []}
    with Presence(searched.location, {}, lambda _: None):
        turn(active, numbers)
        for _ in range(TURNS):
            for condition in draw.sample(list(times), len(times)):
                watcher = None
                if condition == "watched":
                    watcher = command(storage, NAME, "--watch", stdout=subprocess.PIPE)
                    assert watcher.stdout is not None
                    watcher.stdout.readline()  # it has started
                times[condition] += turn(active, numbers)
                if watcher is not None:
                    watcher.kill()
                    watcher.communicate()
    active.close()
    for condition, found in times.items():
        by_clock, of_processor = (1000 * statistics.median(column) for column in zip(*found, strict=True))
        yield f"a new trial costs the search {by_clock:.1f} ms, {of_processor:.1f} ms of the processor: {condition}"


def main() -> None:
    """Print a row for each place and number of trials, then the cost of watching."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[300, 10_000])
    parser.add_argument("--places", nargs="+", default=["disk", "s3", "postgresql"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="mcrnn-status-") as temporary:
        folder = Path(temporary)
        lines = journal_lines(max(arguments.trials), folder / "template")
        print("place       trials        all        name  processor  further look", flush=True)
        with places(arguments.places, folder) as found:
            for place, service in found.items():
                for row in rows(place, service, lines, arguments.trials, folder, arguments.repeats):
                    print(row, flush=True)
        for line in cost_of_watching(lines, max(arguments.trials), folder):
            print(line, flush=True)


if __name__ == "__main__":
    main()
