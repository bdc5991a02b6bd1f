"""The page of a search at many trials: its size, how long it takes to write it, and until a browser has drawn it.

    python -m benchmarks.page [--trials 10 100 1000] [--root FOLDER] [--screenshots FOLDER]

Searches of search_spaces/ns.yaml are run on the recorded learning curves of `benchmarks.curves` by the classes that a
live search uses; every 40th trial diverges and every 50th fails. Printed are, for each number of trials, the size of
the page, the processor time of writing it for the first time and again, and, where there is Chromium, how long after
the start of its navigation the page is interactive (tables, and the figures that are seen at first): the smallest of
five, because other work on the machine can only add to it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.curves.blackbox import Blackbox
from mcrnn.config.loading import load_search
from mcrnn.reports.search_page import render
from mcrnn.search.journal import Journal
from mcrnn.search.page_content import PageReader
from mcrnn.search.study import open_study
from mcrnn.search.trial_report import TrialReport
from mcrnn.search.tune_adapter import StudySearcher
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage
from mcrnn.tracking.run_folder import SearchFolder
from mcrnn.training.session import OBJECTIVE, PENALTY

SPACE = Path(__file__).parent.parent / "search_spaces/ns.yaml"
SIZES = {"desk": (1280, 6000), "phone": (500, 9000)}
"""Windows of the screenshots; Chromium has none that is narrower."""
CHROMIUM = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")


def fill(storage: Storage, name: str, count: int) -> None:
    """Run a search of so many trials on recorded learning curves."""
    blackbox = Blackbox.load("navier-stokes")
    settings: dict[str, Any] = {"search.trials": count, "search.failures": count, "search.confirm": None}
    settings |= {"train.epochs": blackbox.epochs, "name": name}
    search = load_search(str(SPACE), [f"{path}={json.dumps(value)}" for path, value in settings.items()])
    folder = SearchFolder(storage.location(f"searches/{name}"))
    folder.claim(json.loads(json.dumps(search.content() | {"store_digest": "recorded"})))
    searcher = StudySearcher(open_study(Journal.open(folder.location), search), search)
    while isinstance(proposal := searcher.suggest("trial"), dict):
        number, values = proposal["number"], proposal["values"]
        curve = blackbox.curve(values)
        until = 2 if number % 40 == 39 else proposal["target"]
        epochs = [
            {"epoch": epoch + 1, OBJECTIVE: float(error), "best": float(curve.validation[: epoch + 1].min()),
             "seconds": float(curve.seconds[epoch]), "time": float(epoch)}
            for epoch, error in enumerate(curve.validation[:until])
        ]  # fmt: skip
        folder.trial(number).write_metrics(epochs)
        if number % 50 == 49:
            searcher.errors["trial"] = (
                f"RuntimeError: CUDA error: an illegal memory access (see trial-{number}/error.txt)"
            )
            searcher.on_trial_complete("trial", None, error=True)
            continue
        report = {
            **epochs[-1], "epochs": blackbox.epochs, "parameters": values["model.parameters"],
            "time_total_s": float(curve.seconds[:until].sum()),
            "frames_per_second": 2e7 / values["model.parameters"],
        }  # fmt: skip
        if number % 40 == 39:
            report |= {"diverged": 1.0, OBJECTIVE: PENALTY, "best": PENALTY}
        searcher.on_trial_complete("trial", TrialReport.of(report).as_result())
    searcher.conclude()


def interactive(chromium: str, page: Path) -> float:
    """Return the milliseconds until the page is interactive."""
    arguments = [chromium, *CHROMIUM, "--window-size=1280,900", "--timeout=20000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r'data-interactive="(\d+)"', shown)
    return float(found.group(1)) if found else math.inf


def screenshots(chromium: str, page: Path, folder: Path) -> None:
    """Take pictures of the whole page on a desk and on a phone."""
    for name, (width, height) in SIZES.items():
        file = folder / f"{page.stem}-{name}.png"
        size = f"--window-size={width},{height}"
        arguments = [chromium, *CHROMIUM, size, "--virtual-time-budget=8000", f"--screenshot={file}", page.as_uri()]
        subprocess.run(arguments, capture_output=True, check=True, timeout=180)


def main() -> None:
    """Print a row for each number of trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--root", type=Path, help="folder of the searches, which are kept and used again")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the pages")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    print("trials   size [kB]   first [s]   again [s]   interactive [ms]")
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        for count in options.trials:
            storage, name = Storage.open(str(root)), f"page-{count}"
            if not (root / f"searches/{name}").exists():
                fill(storage, name, count)
            reader, took = PageReader(storage, name), []
            for _ in range(4):
                started = time.process_time()
                page = render(reader.read())
                took.append(time.process_time() - started)
            file = root / f"{name}.html"
            LocalFolder(root).write(file.name, page.encode())
            times = [interactive(chromium, file) for _ in range(5)] if chromium else [math.nan]
            again, shown = statistics.median(took[1:]), min(times)
            print(f"{count:6d} {len(page) / 1000:11.0f} {took[0]:11.2f} {again:11.2f} {shown:18.0f}", flush=True)
            if chromium and options.screenshots:
                options.screenshots.mkdir(parents=True, exist_ok=True)
                screenshots(chromium, file, options.screenshots)


if __name__ == "__main__":
    main()
