"""Compare the default search of ns.yaml with the same search written with plain Ray Tune, both trained for real.

    python -m benchmarks.live [--seeds 0 1 2] [--minutes 10] [--epochs 10] [--windows 200] [--root FOLDER]
                             [--set search.sampler=random] [--figure build/live.png]

200 training samples, 10 epochs of 200 windows, 10 minutes on two cores each, one after the other: `mcrnn.tune` with
`ns.yaml`, and `benchmarks.plain_ray_tune`, which runs for as long as the first command took in all, with confirmation,
evaluation and registration. Printed are, for each seed, the closed-loop error of the best network on the test split
(RMSE in standard deviations), the trials that were started, and the time to come to the smallest validation error that
the other one had in the end. Time counts from the start of the command. With --root, searches that have ended are not
run again. The figure build/live.png shows the smallest validation error over time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.folders import root_folder
from benchmarks.plain_ray_tune import build, closed_loop_error, load
from data_prep.navier_stokes import generate
from mcrnn.training.session import OBJECTIVE

SPACE = Path(__file__).parent.parent / "search_spaces/ns.yaml"
STORE = "data/ns-live.zarr"


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    test_error: float
    """Closed-loop RMSE of its best network on the test split, in standard deviations."""
    epochs: list[tuple[float, float]]
    """Seconds since the start of the command, and the validation error, of every epoch of every trial."""
    trials: int
    """Number of trials that were started."""
    seconds: float = 0.0
    """How long the command took in all."""

    def best_by_time(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the seconds at which epochs ended, in order, and the smallest validation error until then."""
        seconds, errors = np.array(sorted(self.epochs)).T
        return seconds, np.minimum.accumulate(errors)

    def time_to(self, error: float) -> float:
        """Return the seconds until the validation error came down to a level; infinite where it did not."""
        seconds, errors = self.best_by_time()
        reached = np.flatnonzero(errors <= error)
        return float(seconds[reached[0]]) if len(reached) else float("inf")


def run(arguments: list[str], log: Path) -> tuple[float, float]:
    """Run a command on two cores, its output into a file; returns the times of its start and end, in seconds."""
    began = time.time()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with log.open("w") as output:
        finished = subprocess.run(
            [sys.executable, "-m", *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if finished.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{log.read_text()[-4000:]}")
    return began, time.time()


def ours(root: Path, seed: int, options: argparse.Namespace) -> Found:
    """Run the search of ns.yaml."""
    name = f"live-{seed}"
    folder = root / "searches" / name
    times_file = root / f"{name}.json"
    if not (folder / "summary.json").exists():
        settings = {
            "data.store": STORE, "data.windows_per_epoch": options.windows, "train.epochs": options.epochs,
            "search.hours": options.minutes / 60, "search.seed": seed, "name": name,
        }  # fmt: skip
        arguments = [f"--set={path}={json.dumps(value)}" for path, value in (settings | _set(options.set)).items()]
        shutil.rmtree(folder, ignore_errors=True)  # of a search that was interrupted, whose times are not known
        times = run(["mcrnn.tune", str(SPACE), "--storage", str(root), *arguments], root / f"{name}.log")
        times_file.write_text(json.dumps(times))
    began, ended = json.loads(times_file.read_text())
    summary = json.loads((folder / "summary.json").read_text())
    epochs = []
    for file in folder.glob("trials/*/metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        epochs += [(line["time"] - began, line[OBJECTIVE]) for line in lines]
    error, trials = summary["test"]["rmse_closed_loop_normalized"], len(list(folder.glob("trials/*")))
    return Found(error, epochs, trials, ended - began)


def plain(root: Path, seed: int, seconds: float, options: argparse.Namespace) -> Found:
    """Run the search that is written with plain Ray Tune, for so many seconds."""
    out = root / f"plain-{seed}"
    store = root / STORE
    if not (out / "best.pt").exists():
        (out / "epochs.jsonl").unlink(missing_ok=True)
        arguments = [f"--seed={seed}", f"--minutes={seconds / 60}", f"--epochs={options.epochs}"]
        arguments.append(f"--windows={options.windows}")
        run(["benchmarks.plain_ray_tune", str(store), f"--out={out}", *arguments], root / f"plain-{seed}.log")
    saved: dict[str, Any] = torch.load(out / "best.pt", weights_only=True)
    model = build(saved["values"])
    model.load_state_dict(saved["weights"])
    error = closed_loop_error(model.eval(), load(str(store), "test")) / float(load(str(store), "train").std())
    lines = [json.loads(line) for line in (out / "epochs.jsonl").read_text().splitlines()]
    return Found(error, [(line["seconds"], line["error"]) for line in lines], len({line["trial"] for line in lines}))


def _set(settings: list[str]) -> dict[str, Any]:
    return {path: json.loads(value) for path, value in (setting.split("=", 1) for setting in settings)}


def draw(file: Path, results: dict[int, tuple[Found, Found]]) -> None:
    """Draw the smallest validation error over time, a panel for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(4.2 * len(results), 3.4), squeeze=False, sharey=True)
    for panel, (seed, pair) in zip(panels[0], results.items(), strict=True):
        for name, found in zip(("mcrnn", "plain Ray Tune"), pair, strict=True):
            seconds, errors = found.best_by_time()
            panel.step(seconds / 60, errors, where="post", label=name)
        panel.set(yscale="log", title=f"seed {seed}", xlabel="minutes")
        panel.grid(alpha=0.2, which="both")
    panels[0][0].set_ylabel("smallest closed-loop validation error")
    panels[0][-1].legend(frameon=False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    print(f"figure: {file}")


def compare(root: Path, options: argparse.Namespace) -> None:
    """Run the searches of all seeds and print what they have found."""
    generate(STORE, train=200, val=50, test=200, seed=0, workers=2, storage=str(root))
    print(
        "seed  test error: mcrnn  plain Ray Tune  ratio  trials  time to the smallest validation error of the other",
        flush=True,
    )
    results: dict[int, tuple[Found, Found]] = {}
    for seed in options.seeds:
        found = ours(root, seed, options)
        other = plain(root, seed, found.seconds, options)
        results[seed] = found, other
        ours_to, theirs_to = found.time_to(other.best_by_time()[1][-1]), other.time_to(found.best_by_time()[1][-1])
        theirs_in_all = other.time_to(other.best_by_time()[1][-1])
        print(
            f"{seed:4d}  {found.test_error:17.4f}  {other.test_error:14.4f}  {found.test_error / other.test_error:5.2f}"
            f"  {found.trials:3d} {other.trials:3d}  mcrnn comes in {ours_to:.0f} s to what plain Ray Tune comes to in "
            f"{theirs_in_all:.0f} s ({ours_to / theirs_in_all:.2f}); plain Ray Tune to that of mcrnn: "
            f"{theirs_to:.0f} s",
            flush=True,
        )
    draw(options.figure, results)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--windows", type=int, default=200, help="training windows of an epoch")
    parser.add_argument("--set", action="append", default=[], help="setting of ns.yaml, for mcrnn, as JSON")
    parser.add_argument("--root", type=Path, help="folder that is kept; else a temporary one")
    parser.add_argument("--figure", type=Path, default=Path("build/live.png"))
    options = parser.parse_args()
    with root_folder(options.root) as root:
        compare(root, options)


if __name__ == "__main__":
    main()
