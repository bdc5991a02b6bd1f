"""Count the device operations of a training step, with the branches that a GPU takes; no GPU is needed.

    python -m benchmarks.operations [--kinds]

On a GPU every operation costs some microseconds of the host's time, which is more than the arithmetic of such small
networks. The step is the trainer's own: loss with noise, backward pass, clipping, sums of the epoch, optimizer. The
networks have the paper's sizes: windows of 25 steps, of which 20 are teacher-forced, 16 x 16. The step runs on the
processor, with the question whether it is one answered by no, and with the fused kernels counted rather than run. The
second number is that with MCRNN_FUSED_GATES=1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton

from benchmarks.paper_models import LAYERS, SIZES
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData, MemorySplit
from mcrnn.data.windows import Batch
from mcrnn.training.session import CallbackSession
from mcrnn.training.trainer import Trainer
from tests.support.device_operations import DeviceOperations

AIMS = {name: 350 if name.startswith("min") else 1200 for name in SIZES}
"""Largest number of operations of a step."""


class CountedKernel:
    """Stands in for a Triton kernel: counts its launches and runs nothing."""

    def __init__(self, name: str, operations: DeviceOperations) -> None:
        self.name, self.operations = name, operations

    def __getitem__(self, grid: Any) -> Any:
        def launch(*_: Any, **__: Any) -> None:
            self.operations.calls[self.name] += 1

        return launch


@contextlib.contextmanager
def as_on_a_gpu(operations: DeviceOperations, fused_gates: bool) -> Iterator[None]:
    """Take the branches of a GPU within the context, and count what it would run."""
    from mcrnn.models import gated_recurrence_triton, minimal_recurrence_triton

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch("mcrnn.device.on_processor", return_value=False))
        patches.enter_context(mock.patch.dict(os.environ, {"MCRNN_FUSED_GATES": "1" if fused_gates else "0"}))
        for module in (minimal_recurrence_triton, gated_recurrence_triton):
            kernels = [name for name, kernel in vars(module).items() if isinstance(kernel, triton.runtime.JITFunction)]
            for name in kernels:
                patches.enter_context(mock.patch.object(module, name, CountedKernel(name, operations)))
        patches.enter_context(operations)
        yield


def trainer(architecture: str, batch: int) -> Trainer:
    """Return a training of the paper's network on random fields."""
    config = Configuration.model_validate(
        {
            "name": "count",
            "data": {"store": "none", "sequence_length": 25, "noise": 0.01},
            "model": {"architecture": architecture, "hidden_size": SIZES[architecture], "layers": LAYERS},
            "train": {"batch_size": batch, "teacher_forcing_steps": 20, "gradient_clip": 1.0},
            "validation": {"warm_up": 10, "horizon": 10},
        }
    )
    field = FieldDescription(
        "vorticity", "1", "1", ("vorticity",), (1, 16, 16), "circular", mean=(0.0,), std=(1.0,), store_digest=""
    )
    split = MemorySplit(np.random.default_rng(0).standard_normal((batch, 26, 1, 16, 16), dtype=np.float32))
    data = FieldData(split, split, field, is_series=False)
    return Trainer(config, data, CallbackSession(lambda *_: None), torch.device("cpu"))


def count(architecture: str, batch: int, fused_gates: bool) -> DeviceOperations:
    """Count the operations of a step after the first, which makes what is kept."""
    training = trainer(architecture, batch)
    windows = Batch(torch.randn(batch, 26, 1, 16, 16), list(range(batch)), 1.0)
    for _ in range(2):
        operations = DeviceOperations()
        with as_on_a_gpu(operations, fused_gates):
            training._step(windows)
    return operations


def main() -> None:
    """Print the number of operations for every architecture at batch 1 and 8."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", action="store_true", help="also print the number of each operator")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("device operations of a training step, 25 steps, 20 teacher-forced, 16 x 16")
    for batch in (1, 8):
        for architecture in SIZES:
            counted = [count(architecture, batch, fused_gates) for fused_gates in (False, True)]
            by_default, fused = (operations.calls.total() for operations in counted)
            print(
                f"  batch {batch}  {architecture:<15} {by_default:5,} {fused:5,}   (aim: at most "
                f"{AIMS[architecture]:,})   tensors made from Python numbers: {counted[0].from_lists}",
                flush=True,
            )
            if options.kinds:
                print("    " + ", ".join(f"{name} {number}" for name, number in counted[1].calls.most_common()))


if __name__ == "__main__":
    main()
