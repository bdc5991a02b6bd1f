"""The Ray that a command starts on this machine: every port is on loopback, and closed to who lacks the token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from mcrnn.runners.own_ray import LOOPBACK_ONLY

pytestmark = pytest.mark.integration

PASSWORD = "a-password-of-the-database"
COMMAND = """
import json, os, sys

from mcrnn.runners.ray_cluster import connected

with connected():
    import ray

    @ray.remote
    class Worker:
        def answer(self):
            return 42

    worker = Worker.remote()
    assert ray.get(worker.answer.remote()) == 42
    print(json.dumps({"gcs": ray.get_runtime_context().gcs_address, "token": os.environ["RAY_AUTH_TOKEN"]}), flush=True)
    sys.stdin.read()
names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MCRNN_MLFLOW_DATABASE")
mode = str(ray._raylet.get_authentication_mode())
print(json.dumps({name: os.environ.get(name) for name in names} | {"mode": mode}), flush=True)
"""
CONNECT = """
import sys
import ray

ray.init(sys.argv[1], logging_level="CRITICAL", log_to_driver=False)
print("connected", ray.nodes())
"""
CALLS = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.InternalKVGcsService/InternalKVKeys",
    "ray.rpc.CoreWorkerService/NumPendingTasks",
    "ray.rpc.NodeManagerService/GetNodeStats",
    "ray.rpc.ObjectManagerService/Pull",
    "ray.rpc.ReporterService/GetTraceback",
)
"""A call of each of Ray's servers."""
FIGURES = {44217, 44227}
"""Ports on which Ray's autoscaler and its dashboard's process show how many nodes there are, to all of this machine."""


@dataclass
class OwnRay:
    """A command with its Ray."""

    process: subprocess.Popen[str]
    said: dict[str, str]

    @property
    def processes(self) -> list[psutil.Process]:
        """The command, and all processes of its Ray."""
        command = psutil.Process(self.process.pid)
        return [command, *command.children(recursive=True)]

    def listening(self) -> dict[int, str]:
        """The address of each port that is open, by the port."""
        connections = [each for process in self.processes for each in process.net_connections("inet")]
        return {each.laddr.port: each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}


@pytest.fixture(scope="module")
def own_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRay]:
    home = tmp_path_factory.mktemp("home")
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HOME": str(home), "MCRNN_MLFLOW_DATABASE": f"postgresql://mcrnn:{PASSWORD}@db/mcrnn"}
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield OwnRay(process, json.loads(process.stdout.readline()))
        process.stdin.close()  # type: ignore[union-attr]
        after = json.loads(process.stdout.readline())
        process.wait(60)
    assert after == {
        "RAY_AUTH_MODE": None,
        "RAY_AUTH_TOKEN": None,
        "MCRNN_MLFLOW_DATABASE": environment["MCRNN_MLFLOW_DATABASE"],
        "mode": "0",
    }
    assert list(home.rglob("*")) == []


def test_every_port_is_on_loopback(own_ray: OwnRay) -> None:
    listening = own_ray.listening()
    assert len(listening) >= 6
    assert set(listening.values()) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


def answer_to_http(port: int) -> int | None:
    """The status with which a port answers to a request, None where it does not speak HTTP."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except Exception:
        return None


def answers_to_calls(port: int) -> set[str]:
    """With what a port answers to calls of gRPC without the token, apart from those that it does not know."""
    answers = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for call in CALLS:
            try:
                channel.unary_unary(f"/{call}")(b"", timeout=10)
                answers.add("OK")
            except grpc.RpcError as error:
                code: Any = error
                answers.add(code.code().name)
    return answers - {"UNIMPLEMENTED"}


def test_every_port_refuses_who_lacks_the_token(own_ray: OwnRay) -> None:
    answers: dict[int, Any] = {}
    for port in own_ray.listening():
        status = answer_to_http(port)
        answers[port] = answers_to_calls(port) if status is None else status
    open_to_all = {port for port, answer in answers.items() if answer not in (401, 403, {"UNAUTHENTICATED"})}
    assert open_to_all <= FIGURES, answers
    for port in open_to_all:
        for path in ("api/version", "nodes", "api/jobs/"):  # nothing but the figures, whatever is asked for
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
                assert answer.read().startswith(b"# HELP")


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_another_process_cannot_connect(own_ray: OwnRay, tmp_path: Path, mode: str) -> None:
    """Neither without a token nor with another one."""
    environment = os.environ | {"RAY_AUTH_MODE": mode, LOOPBACK_ONLY: "0", "HOME": str(tmp_path)}
    environment["RAY_NUM_REDIS_GET_RETRIES"] = "2"  # seconds for which Ray tries it
    environment |= {"RAY_AUTH_TOKEN": "0" * 64} if mode == "token" else {}
    tried = subprocess.run(
        [sys.executable, "-c", CONNECT, own_ray.said["gcs"]],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert tried.returncode != 0
    assert "connected" not in tried.stdout
    assert "InvalidAuthToken" in tried.stderr


def test_neither_token_nor_password_is_where_others_see_it(own_ray: OwnRay) -> None:
    """Every user of the machine sees the arguments of processes."""
    for process in own_ray.processes:
        assert own_ray.said["token"] not in " ".join(process.cmdline())
        if process.pid != own_ray.process.pid:
            assert PASSWORD not in str(process.environ())
