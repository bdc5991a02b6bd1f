"""A cluster of this machine that grows, by Ray's autoscaler with its provider `fake_multinode`."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.support.processes import free_port
from tests.support.ray_cluster import RAY_WITH_PYTHON

HEAD = "127.0.0.2"

HEAD_ID = "f" * 51 + "00000"
"""Ray's own identifier of the head of such a cluster."""
IDLE_SECONDS = 5.0
"""Seconds after which a node without work goes."""
DEFAULTS: dict[str, Any] = {
    "cluster_name": "growing",
    "upscaling_speed": 1.0,
    "docker": {},
    "auth": {},
    "head_node_type": "ray.head.default",
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


class GrowingCluster:
    """A head without CPUs, and nodes that come when something waits for them and go when they are idle."""

    def __init__(
        self,
        folder: Path,
        python: Path,
        version: int,
        node_types: dict[str, Any],
        max_workers: int = 8,
    ) -> None:
        """Start the head.

        Args:
            folder: an empty folder with a short path, where Ray's own files are.
            python: the program that stands for Python where nodes start workers.
            version: of the autoscaler, 1 or 2.
            node_types: the nodes that may come.
            max_workers: largest number of nodes beside the head.
        """
        self.folder = folder
        self.port, self.token = free_port(), secrets.token_hex(16)
        types = {name: {"node_config": {}} | each for name, each in node_types.items()}
        head = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
        provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True}
        provider |= {
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
        }
        provider |= {"gcs_address": f"{HEAD}:{self.port}"}
        content = DEFAULTS | {"provider": provider, "idle_timeout_minutes": IDLE_SECONDS / 60}
        content["max_workers"] = max_workers
        self.configuration = folder / "cluster.yaml"
        self.configuration.write_text(yaml.safe_dump(content | {"available_node_types": types | head}))
        defaults = folder / "defaults.yaml"
        defaults.write_text(yaml.safe_dump(content | {"available_node_types": head}))
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
        }
        if version == 2:
            self.environment |= {
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            }
        for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
            self.environment.pop(name, None)
        self.log = folder / "start.log"
        with self.log.open("wb") as log:
            self.head = subprocess.Popen(
                [
                    *(sys.executable, "-c", RAY_WITH_PYTHON, str(self._launcher(python, defaults)), "start", "--head"),
                    *("--block", "--node-ip-address", HEAD, "--port", str(self.port), "--num-cpus", "0"),
                    *("--temp-dir", str(folder / "r"), "--include-dashboard", "false"),
                    *("--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())),
                    *("--min-worker-port", "0", "--max-worker-port", "0"),
                    f"--autoscaling-config={self.configuration}",
                ],
                env=self.environment,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        try:
            while b"Ray runtime started" not in self.log.read_bytes():
                assert self.head.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        except BaseException:
            self.stop()
            raise

    def _launcher(self, python: Path, defaults: Path) -> Path:
        """Write the program that stands for Python on the head, where the autoscaler is another one."""
        file = self.folder / "python"
        monitor = Path(__file__).with_name("autoscaler_monitor.py")
        file.write_text(
            f'#!/bin/sh\ncase "$*" in\n*/monitor.py\\ *) exec {sys.executable} {monitor} {python} {defaults} "$@" ;;\n'
            f'esac\nexec {python} "$@"\n'
        )
        file.chmod(0o755)
        return file

    @property
    def address(self) -> str:
        return f"{HEAD}:{self.port}"

    def kill(self, node: str) -> None:
        """End a node as a spot machine vanishes: its processes at once.

        Args:
            node: its identifier.
        """
        for process in psutil.Process(self.head.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING") == node:
                    process.kill()

    def stop(self) -> None:
        if self.head.poll() is None:
            os.killpg(self.head.pid, signal.SIGKILL)
            self.head.wait()
