"""What a team has: object storage, a tracking server with passwords, a cluster with a token, and a laptop."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import PROJECT
from tests.support import shared
from tests.support.commands import ForkedProcess
from tests.support.fork_server import launcher
from tests.support.processes import WITHOUT_JOBS, free_port
from tests.support.ray_cluster import HEAD, TwoNodes
from tests.support.s3_server import S3Server

USER, PASSWORD = "lab", "correct horse battery"
SEARCH: dict[str, Any] = {
    "name": "s",
    "data": {"store": "data/tiny.zarr", "coarsen": 2, "sequence_length": 6, "windows_per_epoch": 24},
    "model": {"layers": 1},
    "train": {"epochs": 3, "batch_size": 4, "teacher_forcing_steps": 4},
    "validation": {"warm_up": 4, "horizon": 5},
    "search": {"trials": 4, "seed": 3},
    "space": {
        "model.architecture": {"choice": ["convgru", "minconvexplstm"]},
        "model.hidden_size": {"int": [2, 8]},
        "train.learning_rate": {"float": [1e-3, 1e-2], "log": True},
    },
}


class Lab:
    """What a team has: object storage, a tracking server, a cluster, and a laptop with an empty folder."""

    def __init__(self, folder: Path, s3: S3Server, database: str, postgres_folder: Path) -> None:
        self.folder, self.s3, self.database, self.postgres_folder = folder, s3, database, postgres_folder
        self.laptop = folder / "laptop"
        self.laptop.mkdir()
        self.port = free_port()
        self.uri = f"http://{HEAD}:{self.port}"
        self.environment = {
            **s3.environment,
            "MCRNN_STORAGE": "s3://lab/mcrnn",
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }
        self.mlflow: ForkedProcess | None = None
        self.cluster: TwoNodes | None = None

    def start_mlflow(self, database: str | None = None) -> list[str]:
        """Start the tracking server; returns what it says until it serves."""
        settings = {"MCRNN_MLFLOW_DATABASE": database or self.database}
        programs = os.pathsep.join([str(self.postgres_folder), os.environ["PATH"]])
        self.mlflow = ForkedProcess(
            shared.command_server(),
            [str(PROJECT / "cluster/mlflow_server.py"), "--host", HEAD, "--port", str(self.port)],
            self.laptop,
            os.environ | self.environment | WITHOUT_JOBS | settings | {"PATH": programs},
            errors=self.folder / "mlflow.log",
        )
        said = []
        for line in self.mlflow.stdout:
            said.append(line.strip())
            if line.startswith("tracking server: "):
                break
        return said

    def stop_mlflow(self) -> None:
        if self.mlflow is not None:
            self.mlflow.terminate()
            self.mlflow.wait(30)
            self.mlflow = None

    def start_cluster(self, *, forked: bool = False) -> TwoNodes:
        """Start two nodes.

        Args:
            forked: whether commands of jobs, and workers outside a job's folder, are forked with the imports done.
        """
        python = launcher(shared.command_server()) if forked else None
        self.cluster = TwoNodes(self.folder, python=python, **self.environment)
        return self.cluster

    def run(self, module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command on the laptop."""
        words = ["-m", module, *arguments]
        process = ForkedProcess(
            shared.command_server(), words, self.laptop, os.environ | self.environment | environment
        )
        out, err = process.communicate()
        return subprocess.CompletedProcess(words, process.wait(), out, err)

    def job(self, *command: str, **options: str) -> subprocess.Popen[str]:
        """Submit a job and follow it."""
        assert self.cluster is not None
        return subprocess.Popen(
            self.cluster.submit(*command, **options),
            env=self.cluster.environment,
            cwd=self.laptop,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def keys(self, prefix: str) -> list[str]:
        """What is on object storage."""
        pages = self.s3.client().get_paginator("list_objects_v2").paginate(Bucket="lab", Prefix=f"mcrnn/{prefix}")
        return [entry["Key"].removeprefix("mcrnn/") for page in pages for entry in page.get("Contents", [])]

    def files(self, prefix: str) -> dict[str, bytes]:
        """The same with its content."""
        client = self.s3.client()
        return {key: client.get_object(Bucket="lab", Key=f"mcrnn/{key}")["Body"].read() for key in self.keys(prefix)}

    def close(self) -> None:
        if self.cluster is not None:
            self.cluster.stop()
        self.stop_mlflow()


def write(folder: Path, name: str, **changes: Any) -> Path:
    """A search file in the folder: SEARCH with these changes."""
    content = SEARCH | {"name": name}
    for section, values in changes.items():
        content[section] = content[section] | values
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def prepare(lab: Lab) -> None:
    """Make a tiny store on object storage."""
    sizes = {"train": 6, "val": 3, "test": 4, "seed": 1, "frames": 14, "resolution": 16, "workers": 1}
    arguments = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    built = lab.run("data_prep.navier_stokes", "data/tiny.zarr", *arguments)
    assert built.returncode == 0, built.stderr


def answers(uri: str) -> bool:
    """Whether the tracking server at this address serves."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5):
            return True
    except OSError:
        return False
