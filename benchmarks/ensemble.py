"""What an ensemble of a search gains over its champion on the test split, trained for real.

    python -m benchmarks.ensemble [--picks 5] [--seeds 0] [--minutes 10] [--epochs 10] [--windows 200] [--root FOLDER]

The search of `benchmarks.live`: `ns.yaml` with 200 training samples, 10 epochs of 200 windows, 10 minutes on two cores,
here with `search.ensemble`. Printed are, for each seed, the members, the closed-loop errors on the validation windows
and on the test split (RMSE in standard deviations) of the single model and of the ensemble, their ratio, and the mean
ratio of spread to error. With --root, searches that have ended are not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.folders import root_folder
from benchmarks.live import STORE, ours
from data_prep.navier_stokes import generate
from mcrnn.evaluation.result import evaluate_model
from mcrnn.storage.root import Storage
from mcrnn.tracking.model_loading import load_model
from mcrnn.training.session import OBJECTIVE


def compare(root: Path, options: argparse.Namespace) -> None:
    """Run the searches and print what their ensembles gain."""
    generate(STORE, train=200, val=50, test=200, seed=0, workers=2, storage=str(root))
    storage = Storage.open(str(root))
    for seed in options.seeds:
        ours(root, seed, options)
        summary = json.loads((root / f"searches/live-{seed}/summary.json").read_text())
        found = summary["ensemble"]
        if not found["members"]:
            print(f"seed {seed}: no ensemble was better than its best member", flush=True)
            continue
        members = ", ".join(
            f"{each['count']} x {each['name']} ({each['architecture']}, {each['error']:.4f})"
            for each in found["members"]
        )
        model = load_model(f"models:/{summary['model']}/{found['version']}", storage)
        metrics = evaluate_model("ensemble", model, storage).metrics
        ratio = np.mean(
            np.array(metrics["spread_by_lead_time_normalized"]) / np.array(metrics["rmse_by_lead_time_normalized"])
        )
        single, together = summary["test"][OBJECTIVE], found["test"][OBJECTIVE]
        print(
            f"seed {seed}: {len(summary['trials'])} trials, {found['candidates']} models to pick from\n"
            f"  members     {members}\n"
            f"  validation  single {found['best_member']:.4f}, ensemble {found['error']:.4f}\n"
            f"  test        single {single:.4f}, ensemble {together:.4f}: {100 * (together / single - 1):+.1f} %\n"
            f"  parameters  {metrics['parameters']:,}; spread / error {ratio:.2f}\n"
            f"  promotion   {'the champion now' if found['alias'] else 'not promoted'}: {found['comparison']}",
            flush=True,
        )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picks", type=int, default=5)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--windows", type=int, default=200, help="training windows of an epoch")
    parser.add_argument("--root", type=Path, help="folder that is kept; else a temporary one")
    options = parser.parse_args()
    options.set = [f"search.ensemble={options.picks}"]
    with root_folder(options.root) as root:
        compare(root, options)


if __name__ == "__main__":
    main()
