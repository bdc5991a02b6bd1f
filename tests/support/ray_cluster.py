"""A Ray cluster of this machine as `ray start` makes one: nodes with addresses of their own, tokens, a job server."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import free_port

RAY = str(Path(sys.executable).with_name("ray"))
HEAD, WORKER = "127.0.0.1", "127.0.0.2"
RAY_WITH_PYTHON = "import sys; from ray.scripts.scripts import main; sys.executable = sys.argv.pop(1); main()"
"""Ray's program, which starts its workers with the Python that its first argument names."""


class TwoNodes:
    """A head that trains nothing, and a worker, which sees itself as another machine."""

    def __init__(self, folder: Path, cpus: int = 2, python: Path | None = None, **environment: str) -> None:
        """Start both nodes.

        Args:
            folder: where Ray's own files are.
            cpus: of the worker.
            python: the program that stands for Python where nodes start workers, and jobs start commands; by default
                Python itself.
            environment: what the nodes and jobs are told beside the environment of this process.
        """
        self.folder, self.cpus, self.python = folder, cpus, python
        self.port, self.dashboard = free_port(), free_port()
        self.token = secrets.token_hex(16)
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            **environment,
        }
        # jobs find `python` there, as in an activated environment
        programs = [str(path.parent) for path in (python, Path(RAY)) if path is not None]
        self.environment["PATH"] = os.pathsep.join([*programs, self.environment["PATH"]])
        for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
            self.environment.pop(name, None)
        self.head = self._start(
            HEAD,
            *("--head", "--port", str(self.port), "--num-cpus", "0"),
            *("--dashboard-host", HEAD, "--dashboard-port", str(self.dashboard)),
            *("--ray-client-server-port", str(free_port())),
        )
        self.worker: subprocess.Popen[bytes] | None = None
        self.more: list[subprocess.Popen[bytes]] = []
        try:
            self._wait(self._serves_jobs)
            self.add_worker()
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        return f"{HEAD}:{self.port}"

    @property
    def jobs(self) -> str:
        return f"http://{HEAD}:{self.dashboard}"

    def add_worker(self) -> None:
        """Start the worker. Ray gives a node up that takes longer than 30 s, as it may on a busy machine."""
        self._start_worker()
        self._wait(self._worker_is_there)

    def _start_worker(self) -> None:
        self.worker = self._start(WORKER, "--address", self.address, "--num-cpus", str(self.cpus))

    def _worker_is_there(self) -> bool:
        if self.worker is None or self.worker.poll() is not None:
            self._start_worker()
        return "Ray runtime started" in (self.folder / f"start-{WORKER}.log").read_text()

    def add_machine(self, host: str, *prefix: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a further worker.

        Args:
            host: its address, which no other node has.
            prefix: the command that starts its processes, such as one that gives them a file system of their own.
            environment: what it is told beside the environment of the others.
        """
        arguments = ("--address", self.address, "--num-cpus", str(self.cpus))
        self.more.append(self._start(host, *arguments, prefix=prefix, environment=self.environment | environment))
        log = self.folder / f"start-{host}.log"
        self._wait(lambda: self.more[-1].poll() is not None or "Ray runtime started" in log.read_text())
        assert self.more[-1].poll() is None, log.read_text()
        return self.more[-1]

    def remove_worker(self) -> None:
        """As a spot machine vanishes: all of its processes at once."""
        assert self.worker is not None
        os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()

    def submit(self, *command: str, **options: str) -> list[str]:
        """The command that submits a job."""
        named = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        return [RAY, "job", "submit", "--address", self.jobs, *named, "--", *command]

    def stop(self) -> None:
        for process in (*self.more, self.worker, self.head):
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _start(
        self, host: str, *arguments: str, prefix: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        log = (self.folder / f"start-{host}.log").open("wb")
        # two machines do not share it; sockets need it short
        place = self.folder / {HEAD: "h", WORKER: "w"}.get(host, host.rpartition(".")[2])
        ports = ("--dashboard-agent-listen-port", str(free_port(host)), "--min-worker-port", "0")
        ray = [RAY] if self.python is None else [sys.executable, "-c", RAY_WITH_PYTHON, str(self.python)]
        return subprocess.Popen(
            [
                *(*prefix, *ray, "start", "--block", "--node-ip-address", host, "--temp-dir", str(place)),
                *(*ports, "--max-worker-port", "0", *arguments),
            ],
            env=environment or self.environment,
            stdout=log,
            stderr=log,
            cwd=self.folder,
            start_new_session=True,
        )

    def ask(self, path: str) -> bytes:
        request = urllib.request.Request(self.jobs + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read()

    def _serves_jobs(self) -> bool:
        try:
            return bool(self.ask("/api/jobs/"))
        except (OSError, urllib.error.URLError):
            return False

    def _wait(self, condition: object) -> None:
        deadline = time.monotonic() + 300
        while not condition():  # type: ignore[operator]
            assert self.head.poll() is None, (self.folder / f"start-{HEAD}.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
