"""A client of `mcrnn.serve`: requests in each kind of body, and answers as arrays."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import requests

from tests.support.processes import free_port

JSON, NETCDF, ARROW = "application/json", "application/x-netcdf", "application/vnd.apache.arrow.stream"


def arrow(frames: np.ndarray, column: str = "frames") -> bytes:
    """Frames as an Arrow stream."""
    table = pa.table({column: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(frames))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def forecast_of(answer: requests.Response) -> np.ndarray:
    """The forecasts that an answer in JSON or Arrow has."""
    if answer.headers["content-type"] == JSON:
        return np.array(answer.json()["forecast"], np.float32)
    column = pa.ipc.open_stream(answer.content).read_all().column("forecast").combine_chunks()
    return (column.chunk(0) if isinstance(column, pa.ChunkedArray) else column).to_numpy_ndarray()


@dataclass
class Served:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    url: str
    headers: dict[str, str] = field(default_factory=dict)

    def is_healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=10).status_code == 200
        except requests.RequestException:
            time.sleep(0.3)
            return False

    def post(
        self, body: Any, kind: str = JSON, query: str = "", session: Any = requests, **headers: str
    ) -> requests.Response:
        """Ask for forecasts; a body that is no bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": kind} | self.headers | headers
        return session.post(f"{self.url}/forecast{query}", data=content, headers=sent, timeout=120)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers=self.headers, timeout=30)


@contextlib.contextmanager
def served_model(root: Path, model: str, *options: str, token: str = "") -> Iterator[Served]:
    """Serve a model within the context; the processes of its Ray are children of the server's."""
    port = free_port()
    command = [sys.executable, "-m", "mcrnn.serve", model, "--port", str(port), *options]
    environment = os.environ | {"MCRNN_STORAGE": str(root)} | ({"MCRNN_SERVE_TOKEN": token} if token else {})
    process = subprocess.Popen(command, cwd=root, env=environment)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    served = Served(process, f"http://127.0.0.1:{port}", headers)
    try:
        while not served.is_healthy():
            assert process.poll() is None, "the server has ended"
        yield served
    finally:
        process.terminate()
        process.wait()


def replica_processes(command: int) -> list[psutil.Process]:
    """The replicas of a command, on the Ray that it has started."""
    return [each for each in psutil.Process(command).children(recursive=True) if "ServeReplica:mcrnn-" in _title(each)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def bad_requests(frames: np.ndarray, netcdf: Path) -> list[tuple[dict[str, Any], int, str]]:
    """Requests that must be refused: the arguments of `post`, the status, and a part of the sentence."""
    good = frames.tolist()
    hole = frames.copy()
    hole.flat[3] = np.nan
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"body": b"{"}, 400, "the body is not JSON"),
        ({"body": b"\xff\xfe"}, 400, "the body is not JSON"),
        ({"body": b"[" * 100_000}, 400, "the body is not JSON"),
        ({"body": []}, 400, "the body: input should be"),
        ({"body": {}}, 400, "frames: field required"),
        ({"body": {"frames": good, "step": 3}}, 400, "step: extra inputs are not permitted"),
        ({"body": {"frames": good, "steps": 0}}, 400, "steps: input should be greater than 0"),
        ({"body": {"frames": good, "steps": "many"}}, 400, "steps: input should be a valid integer"),
        ({"body": {"frames": good, "steps": 10**12}}, 400, "at most 1000 are computed here"),
        ({"body": {"frames": [[1, 2], [3]]}}, 400, "nested lists of numbers"),
        ({"body": {"frames": [["a"]]}}, 400, "nested lists of numbers"),
        ({"body": {"frames": []}}, 400, "the frames have the shape"),
        ({"body": {"frames": frames[..., :3].tolist()}}, 400, "with 1 channel and"),
        ({"body": {"frames": np.zeros((1, 2, 3, 8, 8)).tolist()}}, 400, "with 1 channel and"),
        ({"body": {"frames": hole.tolist()}}, 400, "the frames have missing values"),
        ({"body": {"frames": good}, "query": "?warm_up=3"}, 400, "warm_up and start go with NetCDF"),
        ({"body": b"no", "kind": ARROW}, 400, "no Arrow stream with a column 'frames'"),
        ({"body": arrow(frames, "field"), "kind": ARROW}, 400, "no Arrow stream with a column 'frames'"),
        ({"body": arrow(frames[..., :2]), "kind": ARROW}, 400, "with 1 channel and"),
        ({"body": arrow(frames), "kind": ARROW, "query": "?steps=x"}, 400, "steps: input should be a valid integer"),
        ({"body": b"CDF", "kind": NETCDF}, 400, "'the body' cannot be read as NetCDF"),
        ({"body": netcdf.read_bytes()[:3000], "kind": NETCDF}, 400, "'the body' cannot be read as NetCDF"),
        ({"body": netcdf.read_bytes(), "kind": NETCDF, "query": "?start=soon"}, 400, "--from is a time such as"),
        ({"body": netcdf.read_bytes(), "kind": NETCDF, "query": "?warm_up=99"}, 400, "and a forecast is given 99"),
        (
            {"body": netcdf.read_bytes(), "kind": NETCDF, "query": "?steps=1000&start=all&warm_up=1"},
            400,
            "at most 1 MB",
        ),
        ({"body": netcdf.read_bytes(), "kind": NETCDF, "query": "?what=1"}, 400, "what: extra inputs"),
        ({"body": good, "kind": "text/csv"}, 415, "not 'text/csv'"),
        ({"body": good, "kind": ""}, 415, "the header Content-Type is"),
        ({"body": b"0" * 1_100_000}, 413, "more than 1 MB"),
    ]
    return cases
