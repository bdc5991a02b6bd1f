"""A client of `mcrnn.serve`: requests in each kind of body, and answers as arrays."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import requests
import xarray as xr

from tests.support.processes import free_port, wait_for

JSON, NETCDF, ARROW = "application/json", "application/x-netcdf", "application/vnd.apache.arrow.stream"


def arrow(frames: np.ndarray, column: str = "frames") -> bytes:
    """Frames as an Arrow stream."""
    table = pa.table({column: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(frames))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def as_json(content: Any) -> bytes:
    """A body in JSON."""
    return json.dumps(content).encode()


def write_netcdf(path: Path, frames_THW: np.ndarray, coarsen: int) -> Path:
    """A file whose means over blocks are some frames of a generated field, at the times 1, 2, ..."""
    fine_THW = frames_THW.repeat(coarsen, axis=1).repeat(coarsen, axis=2)
    data = xr.Dataset({"vorticity": (("t", "row", "column"), fine_THW)}, {"t": np.arange(1.0, len(fine_THW) + 1)})
    data.to_netcdf(path)
    return path


def read_forecast(kind: str, body: bytes) -> np.ndarray:
    """The forecasts that an answer in JSON or Arrow has."""
    if kind == JSON:
        return np.array(json.loads(body)["forecast"], np.float32)
    column = pa.ipc.open_stream(body).read_all().column("forecast").combine_chunks()
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
            return False

    def post(
        self, body: bytes, kind: str = JSON, query: Mapping[str, str] = MappingProxyType({}), session: Any = requests
    ) -> requests.Response:
        """Ask for forecasts."""
        headers = {"Content-Type": kind} | self.headers
        return session.post(f"{self.url}/forecast", data=body, params=dict(query), headers=headers, timeout=120)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers=self.headers, timeout=30)


@contextlib.contextmanager
def served_model(root: Path, model: str, *options: str) -> Iterator[Served]:
    """Serve a model within the context; the processes of its Ray are children of the server's."""
    port = free_port()
    command = [sys.executable, "-m", "mcrnn.serve", model, "--port", str(port), *options]
    environment = os.environ | {"MCRNN_STORAGE": str(root)}
    process = subprocess.Popen(command, cwd=root, env=environment)
    served = Served(process, f"http://127.0.0.1:{port}")
    try:
        wait_for(served.is_healthy, process, 240)
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


@dataclass(frozen=True)
class BadRequest:
    """A request that must be refused, the status of the answer, and a part of its sentence."""

    status: int
    sentence: str
    body: bytes
    kind: str = JSON
    query: dict[str, str] = field(default_factory=dict)


def bad_requests(frames: np.ndarray, netcdf: Path) -> list[BadRequest]:
    """Requests that a model of one channel must refuse, where bodies may have 1 MB.

    Args:
        frames: given frames that it takes, (1, time, 1, height, width).
        netcdf: the same as a file.
    """
    hole = frames.copy()
    hole.flat[3] = np.nan
    good, file = frames.tolist(), netcdf.read_bytes()
    unreadable, no_tensors = "'the body' cannot be read as NetCDF", "no Arrow stream with a column 'frames'"

    def of_json(sentence: str, content: Any, **query: str) -> BadRequest:
        return BadRequest(400, sentence, as_json(content), query=query)

    return [
        BadRequest(400, "the body is not JSON", b"{"),
        BadRequest(400, "the body is not JSON", b"\xff\xfe"),
        BadRequest(400, "the body is not JSON", b"[" * 100_000),
        of_json("the body: input should be", []),
        of_json("frames: field required", {}),
        of_json("step: extra inputs are not permitted", {"frames": good, "step": 3}),
        of_json("steps: input should be greater than 0", {"frames": good, "steps": 0}),
        of_json("steps: input should be a valid integer", {"frames": good, "steps": "many"}),
        of_json("at most 1000 are computed here", {"frames": good, "steps": 10**12}),
        of_json("nested lists of numbers", {"frames": [[1, 2], [3]]}),
        of_json("nested lists of numbers", {"frames": [["a"]]}),
        of_json("the frames have the shape", {"frames": []}),
        of_json("with 1 channel and", {"frames": frames[..., :3].tolist()}),
        of_json("with 1 channel and", {"frames": np.repeat(frames, 3, axis=2).tolist()}),
        of_json("the frames have missing values", {"frames": hole.tolist()}),
        of_json("warm_up and start go with NetCDF", {"frames": good}, warm_up="3"),
        BadRequest(400, no_tensors, b"no", ARROW),
        BadRequest(400, no_tensors, arrow(frames, "field"), ARROW),
        BadRequest(400, "with 1 channel and", arrow(frames[..., :2]), ARROW),
        BadRequest(400, "steps: input should be a valid integer", arrow(frames), ARROW, {"steps": "x"}),
        BadRequest(400, unreadable, b"CDF", NETCDF),
        BadRequest(400, unreadable, file[:3000], NETCDF),
        BadRequest(400, "a start is a time such as", file, NETCDF, {"start": "soon"}),
        BadRequest(400, "and a forecast is given 99", file, NETCDF, {"warm_up": "99"}),
        BadRequest(400, "at most 1 MB", file, NETCDF, {"steps": "1000", "start": "all", "warm_up": "1"}),
        BadRequest(400, "what: extra inputs", file, NETCDF, {"what": "1"}),
        BadRequest(415, "not 'text/csv'", b"1,2", "text/csv"),
        BadRequest(415, "the header Content-Type is", b"1,2", ""),
        BadRequest(413, "more than 1 MB", b"0" * 1_100_000),
    ]
