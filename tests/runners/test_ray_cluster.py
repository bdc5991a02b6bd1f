"""Connecting to Ray: only where a command says so."""

from __future__ import annotations

import subprocess
import sys

CALL_WITHOUT_CONNECTION = """
from mcrnn.runners import ray_cluster
import ray
try:
    ray.put(1)
finally:
    print(ray.is_initialized())
"""


def test_call_of_ray_without_a_connection_starts_none() -> None:
    """As of a thread of Tune that has not ended yet when the command disconnects from Ray."""
    done = subprocess.run(
        [sys.executable, "-c", CALL_WITHOUT_CONNECTION], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "False"
    assert "has not been started" in done.stderr, done.stderr
