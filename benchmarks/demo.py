"""What the demo promises: its time, the number of trials, and the error of its champion beside the baselines.

    python -m benchmarks.demo

Runs the three commands of `make demo` in a temporary storage root and prints a line for each promise.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def demo_commands() -> list[list[str]]:
    """Return the commands of `make demo`, as the Makefile has them."""
    recipe = re.search(r"^demo: \$\(READY\)\n((?:\t.*\n)+)", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    commands = [line.split() for line in recipe.group(1).splitlines()]
    return [[sys.executable, *command[1:]] for command in commands]


def main() -> None:
    """Run and print."""
    with tempfile.TemporaryDirectory() as root:
        environment = os.environ | {"MCRNN_STORAGE": root}
        environment.pop("MLFLOW_TRACKING_URI", None)
        started = time.monotonic()
        for command in demo_commands():
            subprocess.run(command, cwd=PROJECT, env=environment, check=True)
        seconds = time.monotonic() - started
        summary = json.loads((Path(root) / "searches/demo/summary.json").read_bytes())
        (metrics,) = json.loads(next(Path(root).glob("reports/*/metrics.json")).read_bytes())
    architectures = {row["values"]["model.architecture"] for row in summary["trials"]}
    print(f"cores                              {os.cpu_count()}")
    print(f"time of the three commands         {seconds:.0f} s (promised: at most 300 s)")
    print(f"trials                             {len(summary['trials'])} (promised: at least 10)")
    print(f"architectures                      {len(architectures)} (promised: 5)")
    print(f"champion                           {metrics['architecture']}, {metrics['parameters']} parameters")
    print(f"closed-loop test RMSE              {metrics['rmse_closed_loop']:.4f}")
    for name, baseline in metrics["baselines"].items():
        print(f"  of {name:<31} {baseline['rmse_closed_loop']:.4f}")
    print(f"over the better baseline           {metrics['ratio_to_better_baseline']:.3f} (promised: at most 0.65)")


if __name__ == "__main__":
    main()
