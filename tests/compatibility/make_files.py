"""Write, with the code of any commit, the files that test_files_of_before.py reads.

    python tests/compatibility/make_files.py 18bdb65 tests/compatibility/written_by_0_1_0.tar.xz

The archive holds a storage root: a store, a finished and a half-finished search, a finished and a half-finished run,
and MLflow's database and artifacts, in which the winner of the finished search is registered. The half-finished ones
are killed in the middle of their work. Needs Linux or macOS, and the packages that the commit was written for.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

PROJECT = Path(__file__).parent.parent.parent
PLACE = Path("/tmp/mcrnn-files")
"""Everything is done below it. The files name it, so it must say nothing of the machine; short, for Ray's sockets."""
ROOT = PLACE / "root"
"""The storage root while the files are written."""
HOST = "elsewhere"
"""Takes the place of this machine's name."""

EPOCHS = 5
TRAINING: dict[str, Any] = {
    "data": {"store": "data/tiny.zarr", "coarsen": 2, "sequence_length": 6, "windows_per_epoch": 60},
    "model": {"layers": 1, "kernel_size": 3},
    "train": {"epochs": EPOCHS, "batch_size": 4, "teacher_forcing_steps": 4, "checkpoint_minutes": 0.01},
    "validation": {"warm_up": 4, "horizon": 5},
}
SEARCH: dict[str, Any] = TRAINING | {
    "search": {"trials": 4, "concurrency": 1, "seed": 4, "asha": {"grace_epochs": 2, "reduction_factor": 2}},
    "space": {
        "model.architecture": {"choice": ["convgru", "minconvgru"]},
        "model.hidden_size": {"int": [2, 4]},
        "train.learning_rate": {"float": [1e-3, 1e-2], "log": True},
    },
}
RUN: dict[str, Any] = TRAINING | {"model": {"architecture": "minconvlstm", "hidden_size": 3} | TRAINING["model"]}
FILES: dict[str, dict[str, Any]] = {
    "done": SEARCH | {"train": TRAINING["train"] | {"epochs": 2}, "search": SEARCH["search"] | {"trials": 2}},
    "half": SEARCH,
    "finished": RUN | {"train": TRAINING["train"] | {"epochs": 2}},
    "half-run": RUN,
}
"""Configurations by name, which are those of the two searches and the two runs."""

FORECAST = """
import mlflow, numpy as np
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/mcrnn-done@champion")
frames = np.random.default_rng(0).normal(size=(2, 3, 1, 4, 4)).astype(np.float32)
np.savez("forecast.npz", frames=frames, forecast=model.predict(frames, params={"steps": 3}))
"""


class Commands:
    """Run commands of a commit, whose files are in a folder, on ROOT."""

    def __init__(self, code: Path) -> None:
        of_shell = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
        self.environment = {key: value for key, value in os.environ.items() if key not in of_shell} | {
            "PYTHONPATH": str(code),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MCRNN_STORAGE": str(ROOT),
            "RAY_TMPDIR": str(PLACE / "ray"),
            "TMPDIR": str(PLACE / "temporary"),
            "USER": "mcrnn",
        }

    def run(self, *arguments: str) -> None:
        """Run `python ARGUMENTS...` to its end."""
        subprocess.run([sys.executable, *arguments], cwd=ROOT, env=self.environment, check=True)

    def kill(self, condition: Callable[[], bool], *arguments: str) -> None:
        """Run `python ARGUMENTS...` until a condition holds, then kill it and all that it started."""
        with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=self.environment) as process:
            while not condition():
                if process.poll() is not None:
                    raise SystemExit(f"python {' '.join(arguments)} has ended before it could be killed")
                time.sleep(0.02)
            below = psutil.Process(process.pid).children(recursive=True)
            for each in [process, *below]:
                each.send_signal(signal.SIGKILL)
            psutil.wait_procs(below, timeout=60)
        if not condition():
            raise SystemExit(f"python {' '.join(arguments)} was killed too late; try again")


def is_half(folder: Path) -> bool:
    """Whether the training in a folder is behind its third epoch, and has a checkpoint and a run in MLflow, but no end.

    So late, for the test has to train what is left.
    """
    if (folder / "end.json").exists() or not any(folder.glob("checkpoints/*.pt")):
        return False
    run = folder / "run.json"
    in_mlflow = run.exists() and json.loads(run.read_text())["sent"] >= 1
    return in_mlflow and 3 <= len((folder / "metrics.jsonl").read_text().splitlines()) < EPOCHS


def search_is_half() -> bool:
    """Whether two trials of the search have ended and the third is half trained."""
    search = ROOT / "searches/half"
    return is_half(search / "trials/0002") and _ended_trials(search / "study.journal") == 2


def _ended_trials(journal: Path) -> int:
    """Trials whose end the journal of a study tells: operation 6 sets a state, of which 1 to 3 are ends."""
    entries = [json.loads(line) for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return sum(entry["op_code"] == 6 and entry["state"] in (1, 2, 3) for entry in entries)


def make(commands: Commands) -> None:
    """Write everything below ROOT."""
    for name, content in FILES.items():
        (ROOT / f"{name}.yaml").write_text(yaml.safe_dump({"name": name} | content, sort_keys=False))
    samples = ["--train", "4", "--val", "2", "--test", "2", "--frames", "12", "--resolution", "8"]
    commands.run("-m", "data_prep.navier_stokes", "data/tiny.zarr", *samples, "--seed", "1", "--workers", "1")
    commands.run("-m", "mcrnn.train", "finished.yaml")
    commands.kill(lambda: is_half(ROOT / "runs/half-run"), "-m", "mcrnn.train", "half-run.yaml")
    commands.run("-m", "mcrnn.tune", "done.yaml")
    commands.kill(search_is_half, "-m", "mcrnn.tune", "half.yaml")


def make_expected(commands: Commands, folder: Path) -> None:
    """Write what the registered model gives, by its evaluation and as MLflow loads it, to a folder."""
    commands.run("-m", "mcrnn.evaluate", "models:/mcrnn-done@champion")
    commands.run("-c", FORECAST)
    folder.mkdir()
    shutil.copy(ROOT / "reports/mcrnn-done_champion/metrics.json", folder)
    shutil.copy(ROOT / "forecast.npz", folder)


def tidy(root: Path) -> None:
    """Remove pictures, reports, compiled code and locks, and this machine's name and clock from what is left.

    Another machine takes over the lease of a search only when it is old by its own clock. Optuna waits half a minute
    before it takes over the lock of a journal.
    """
    for pattern in ("mlartifacts/**/evaluation", "mlartifacts/**/figures", "searches/*/figures", "**/__pycache__"):
        for folder in list(root.glob(pattern)):
            shutil.rmtree(folder)
    (root / "searches/half/study.journal.lock").unlink(missing_ok=True)
    lease = root / "searches/half/lock.json"
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"time": 0.0}))
    here = socket.gethostname()
    names = {f'"host": "{here}"': f'"host": "{HOST}"', f" on {here}": f" on {HOST}"}
    for file in root.rglob("*.json"):
        content = file.read_text()
        for old, new in names.items():
            content = content.replace(old, new)
        file.write_text(content)
    database = sqlite3.connect(root / "mlflow.db", isolation_level=None)
    for old, new in names.items():
        for table in ("tags", "registered_model_tags"):
            database.execute(f"UPDATE {table} SET value = REPLACE(value, ?, ?)", (old, new))
    database.execute("VACUUM")
    database.close()


def pack(root: Path, archive: Path) -> None:
    """Pack a folder so that the same files give the same archive."""
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        for file in sorted(file for file in root.rglob("*") if file.is_file()):
            content = file.read_bytes()
            entry = tarfile.TarInfo(file.relative_to(root).as_posix())
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))


def main(commit: str, archive: str) -> None:
    """Write the files with the code of a commit, and pack them."""
    code, copy = PLACE / "code", PLACE / "copy"
    for folder in (PLACE, ROOT, PLACE / "temporary"):
        folder.mkdir()
    try:
        of_commit = ["git", "-C", str(PROJECT), "archive", "--format", "tar", commit]
        files = subprocess.run(of_commit, check=True, stdout=subprocess.PIPE).stdout
        with tarfile.open(fileobj=io.BytesIO(files)) as unpacked:
            unpacked.extractall(code, filter="data")
        commands = Commands(code)
        make(commands)
        shutil.copytree(ROOT, copy, symlinks=True)
        make_expected(commands, copy / "expected")
        tidy(copy)
        pack(copy, Path(archive))
    finally:
        shutil.rmtree(PLACE)
    print(f"{archive}: {Path(archive).stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
