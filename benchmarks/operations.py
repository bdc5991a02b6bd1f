"""Count the device operations of a training step, with the branches that a GPU takes; no GPU is needed.

    python -m benchmarks.operations [--kinds]

On a GPU every operation costs some microseconds of the host's time, which is more than the arithmetic of such small
networks. The step is the trainer's own: loss with noise, backward pass, clipping, sums of the epoch, optimizer. The
networks have the paper's sizes: windows of 25 steps, of which 20 are teacher-forced, 16 x 16. The step runs on the
processor, with the question whether it is one answered by no, and with the fused kernels counted rather than run.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

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
def as_on_a_gpu(operations: DeviceOperations) -> Iterator[None]:
    """Take the branches of a GPU within the context, and count what it would run."""
    from mcrnn.models import minimal_recurrence_triton

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch("mcrnn.device.on_processor", return_value=False))
        for name in ("_forward", "_backward"):
            kernel = CountedKernel(f"minimal_recurrence{name}", operations)
            patches.enter_context(mock.patch.object(minimal_recurrence_triton, name, kernel))
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


def count(architecture: str, batch: int) -> DeviceOperations:
    """Count the operations of a step after the first, which makes what is kept."""
    training = trainer(architecture, batch)
    windows = Batch(torch.randn(batch, 26, 1, 16, 16), list(range(batch)), 1.0)
    for _ in range(2):
        operations = DeviceOperations()
        with as_on_a_gpu(operations):
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
            operations = count(architecture, batch)
            print(
                f"  batch {batch}  {architecture:<15} {operations.calls.total():5}   (aim: at most "
                f"{AIMS[architecture]:,})   tensors made from Python numbers: {operations.from_lists}"
            )
            if options.kinds:
                print("    " + ", ".join(f"{name} {number}" for name, number in operations.calls.most_common()))


if __name__ == "__main__":
    main()
