"""The number of device operations of a training step stays within its aim."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.soak
def test_a_step_has_at_most_as_many_operations_as_aimed_for() -> None:
    pytest.importorskip("triton")
    # the kernels that are counted must be those that a GPU would run, not those of the interpreter
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.operations"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = re.findall(r"batch (\d+)  (\w+) +([\d,]+) +([\d,]+) +\(aim: at most ([\d,]+)\)", done.stdout)
    assert len(lines) == 10, done.stdout + done.stderr
    for batch, architecture, by_default, with_kernels, aim in lines:
        counted = by_default if architecture.startswith("min") else with_kernels
        assert int(counted.replace(",", "")) <= int(aim.replace(",", "")), f"{architecture}, batch {batch}"
