"""The benchmark of GPUs runs without one, and needs little beside PyTorch."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import runpy, sys
for name in ("ray", "mlflow", "optuna", "zarr", "xarray", "s3fs", "rich", "matplotlib"):
    sys.modules[name] = None  # an import of it raises ImportError
sys.argv = ["benchmarks.gpu", "--device", "cpu", "--tiny"]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


@pytest.mark.soak
def test_the_benchmark_of_gpus_runs_on_a_processor_and_says_what_it_skips() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "Skipped without a GPU: CUDA graphs, MCRNN_FUSED_GATES; tf32 is float32 here" in lines[0]
    assert sum("paper" in line and "arithmetic" in line and "x)" in line for line in lines) == 2 * 5 * 3
    assert sum(line.endswith("operation by operation again: yes") for line in lines) == 5
    assert sum("MB   eager" in line for line in lines) == 2 * 5
    assert sum("channels last" in line for line in lines) == 7


def test_the_benchmark_of_gpus_refuses_what_it_cannot_do() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--turns", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--turns must be at least 1, not 0" in done.stderr
