"""Make what the notebooks read: a small store and a finished search, below a storage root of their own.

    python examples/prepare.py

It takes about a minute, and a few seconds where it has been done already, because every command recognises what is
there. `make docs` runs it before it builds the documentation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORAGE = ROOT / "build" / "docs" / "storage"
COMMANDS = (
    "data_prep.navier_stokes data/ns-example.zarr --train 48 --val 8 --test 8 --frames 20 --resolution 32",
    "mcrnn.tune examples/search.yaml",
)


def main() -> None:
    """Run the commands.

    Raises:
        subprocess.CalledProcessError: one of them has failed.
    """
    environment = os.environ | {"MCRNN_STORAGE": str(STORAGE), "OMP_NUM_THREADS": "1"}
    for elsewhere in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        environment.pop(elsewhere, None)
    for command in COMMANDS:
        print(f"python -m {command}", flush=True)
        subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    main()
