"""Measure the training step on a GPU: beside the paper's formulation, as a CUDA graph, and against the card's limits.

    python -m benchmarks.gpu                    # some minutes on a GPU
    python -m benchmarks.gpu --device cpu --tiny    # that the command works, without a GPU

It prints the step's time for each architecture, batch and precision, operation by operation, as a CUDA graph and, for
ConvLSTM and ConvGRU, with MCRNN_FUSED_GATES=1; the share of what the card can multiply and copy, both measured on it;
whether graph and single operations give the same bits over 200 steps; peak memory; and which layout and which widths
convolutions are fast with. What takes turns, takes turns in one process. Beside PyTorch it needs pydantic and
safetensors only. Many trials on one card and several GPUs are not measured here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.models import peak_bytes, training_step
from benchmarks.paper_models import LAYERS, SIZES, PaperForecaster
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData, MemorySplit
from mcrnn.data.windows import Batch
from mcrnn.models import model_cost
from mcrnn.models.precision import running_in
from mcrnn.training.graphed_step import GraphedStep
from mcrnn.training.numerics import numeric_settings
from mcrnn.training.session import CallbackSession
from mcrnn.training.trainer import Trainer

PRECISIONS = ("float32", "tf32", "bf16")
BATCHES = (1, 8)
FUSED_GATES = "MCRNN_FUSED_GATES"


@dataclass(frozen=True)
class Scale:
    """How large and how many: the paper's sizes by default."""

    grid: int = 16
    layers: int = LAYERS
    steps: int = 25
    forced: int = 20
    turns: int = 5
    """Turns of a measurement, after one that does not count."""
    steps_per_turn: int = 4
    compared_steps: int = 200
    gigabytes: float = 1.0
    """Size of the copy that measures the bandwidth."""
    side: int = 8192
    """Rows and columns of the matrices that measure the arithmetic."""

    def width(self, architecture: str) -> int:
        """Return the hidden size."""
        return SIZES[architecture] if self.layers == LAYERS else 3


TINY = Scale(grid=5, layers=1, steps=4, forced=2, turns=1, steps_per_turn=1, compared_steps=6, gigabytes=0.001, side=64)


def configuration(scale: Scale, architecture: str, batch: int, precision: str, **train: Any) -> Configuration:
    """Return the configuration of a training."""
    return Configuration.model_validate(
        {
            "name": "gpu",
            "data": {"store": "none", "sequence_length": scale.steps},
            "model": {
                "architecture": architecture,
                "hidden_size": scale.width(architecture),
                "layers": scale.layers,
            },
            "train": {
                "batch_size": batch,
                "teacher_forcing_steps": scale.forced,
                "precision": precision,
                "schedule": "constant",
                **train,
            },
            "validation": {"warm_up": 1, "horizon": 1},
        }
    )


def trainer(config: Configuration, scale: Scale, device: torch.device) -> Trainer:
    """Return a training on random fields."""
    shape = (config.train.batch_size, scale.steps + 1, 1, scale.grid, scale.grid)
    split = MemorySplit(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    statistics_of_field: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "store_digest": ""}
    field = FieldDescription("f", "1", "1", ("f",), (1, scale.grid, scale.grid), "circular", **statistics_of_field)
    data = FieldData(split, split, field, is_series=False)
    return Trainer(config, data, CallbackSession(lambda *_: None), device)


def random_batch(training: Trainer, seed: int) -> Batch:
    """Return windows of random values on the device of a training."""
    shape = training.train_split.shape
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return Batch(values.to(training.device), list(range(shape[0])), 1.0)


@contextlib.contextmanager
def fused_gates(enabled: bool) -> Iterator[None]:
    """Set MCRNN_FUSED_GATES within the context."""
    before = os.environ.get(FUSED_GATES)
    os.environ[FUSED_GATES] = "1" if enabled else "0"
    try:
        yield
    finally:
        os.environ.pop(FUSED_GATES)
        if before is not None:
            os.environ[FUSED_GATES] = before


def our_step(config: Configuration, scale: Scale, device: torch.device, fused: bool = False) -> Callable[[], None]:
    """Return a function that takes a step of a training."""
    training = trainer(config, scale, device)
    batch = random_batch(training, 0)

    def step() -> None:
        with running_in(config.train.precision, device), fused_gates(fused):
            training._step(batch)

    return step


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(works: dict[str, Callable[[], Any]], scale: Scale, device: torch.device) -> dict[str, float]:
    """Run functions in turns, and return the median seconds of a call of each."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(scale.turns + 1):
        for name, work in works.items():
            wait(device)
            started = clock()
            for _ in range(scale.steps_per_turn):
                work()
            wait(device)
            if turn:
                found[name].append((clock() - started) / scale.steps_per_turn)
    return {name: max(statistics.median(values), 1e-9) for name, values in found.items()}


def limits(scale: Scale, device: torch.device) -> tuple[dict[str, float], float]:
    """Return the multiply-adds a second for each precision, and the bytes a second that are read and written."""
    matrix = torch.randn(scale.side, scale.side, device=device)
    rates = {}
    for precision in PRECISIONS:

        def product(precision: str = precision) -> None:
            with running_in(precision, device):
                torch.mm(matrix, matrix)

        rates[precision] = scale.side**3 / seconds_of({"product": product}, scale, device)["product"]
    source = torch.empty(int(scale.gigabytes * 2**28), device=device)
    target = torch.empty_like(source)
    seconds = seconds_of({"copy": lambda: target.copy_(source)}, scale, device)["copy"]
    return rates, 2 * source.nbytes / seconds


def times(scale: Scale, device: torch.device) -> None:
    """Print the time of a step beside the paper's formulation, and its share of the limits."""
    rates, bandwidth = limits(scale, device)
    listed = ", ".join(f"{precision} {2 * rate / 1e12:.3g} TFLOP/s" for precision, rate in rates.items())
    print(f"limits measured on this device: products of matrices {listed}; copies {bandwidth / 1e9:.4g} GB/s")
    print(
        f"training step, {scale.steps} frames, {scale.forced} teacher-forced, {scale.grid} x {scale.grid}; arithmetic: "
        "share of the products' rate; bandwidth: share of the copies' rate if activations were written and read once"
    )
    for batch in BATCHES:
        for architecture in SIZES:
            for precision in PRECISIONS:
                print_times(scale, device, architecture, batch, precision, rates[precision], bandwidth)


def print_times(
    scale: Scale,
    device: torch.device,
    architecture: str,
    batch: int,
    precision: str,
    rate: float,
    bandwidth: float,
) -> None:
    """Print the line of one architecture, batch and precision."""
    config = configuration(scale, architecture, batch, precision)
    paper = PaperForecaster(architecture, scale.width(architecture), scale.layers, 1, (scale.grid,) * 2, "circular")
    x_BTCHW = torch.randn(batch, scale.steps + 1, 1, scale.grid, scale.grid, device=device)
    works = {
        "paper": training_step(paper.to(device), x_BTCHW, precision),
        "eager": our_step(config, scale, device),
    }
    if device.type == "cuda":
        train = config.train.model_copy(update={"cuda_graph": True})
        with_graph = config.model_copy(update={"train": train})
        works["graph"] = our_step(with_graph, scale, device)
        if architecture in ("convlstm", "convgru"):
            works["eager fused"] = our_step(config, scale, device, fused=True)
            works["graph fused"] = our_step(with_graph, scale, device, fused=True)
        for work in works.values():
            for _ in range(3):  # compiles kernels, records graphs
                work()
    seconds = seconds_of(works, scale, device)
    best = min(seconds["eager"], *(value for name, value in seconds.items() if name != "paper"))
    cost = model_cost(config.model, (1, scale.grid, scale.grid))
    frames = batch * scale.steps
    arithmetic = 3 * cost.multiply_adds * frames / best / rate  # the backward pass has two products for each
    copied = 2 * cost.activation_bytes * frames / best / bandwidth
    cells = [
        f"{name} {value * 1e3:.2f} ms ({seconds['paper'] / value:.2f}x)"
        for name, value in seconds.items()
        if name != "paper"
    ]
    print(
        f"  batch {batch}  {architecture:<15} {precision:<8} paper {seconds['paper'] * 1e3:.2f} ms   "
        f"{'   '.join(cells)}   arithmetic {arithmetic:.1%}, bandwidth {copied:.1%}",
        flush=True,
    )


def final_state(config: Configuration, scale: Scale, device: torch.device) -> dict[str, torch.Tensor]:
    """Take steps on windows of their own, the last ones with fewer teacher-forced steps; return the weights."""
    with numeric_settings(config.train, device):
        training = trainer(config, scale, device)
        for number in range(scale.compared_steps):
            training.epoch = 1 if number < scale.compared_steps // 2 else config.train.epochs
            training._step(random_batch(training, number))
            training.batch += 1
    if config.train.cuda_graph:
        assert isinstance(training.step, GraphedStep)
        assert training.step.can_record, "the graph could not be recorded"
    averaged = {} if training.average is None else training.average.state_dict()
    return {**training.model.state_dict(), **averaged, "sums": training.sums.tensor}


def equality(scale: Scale, device: torch.device) -> None:
    """Print whether two runs, and a run with graphs, give the same bits."""
    print(f"the same bits after {scale.compared_steps} steps with noise, dropout, clipping and averaged weights?")
    for architecture in SIZES:
        options: dict[str, Any] = {"deterministic": True, "ema": 0.99, "teacher_forcing_end": 1, "epochs": 2}
        config = configuration(scale, architecture, 8, "float32", **options)
        config = config.model_copy(
            update={
                "data": config.data.model_copy(update={"noise": 0.01}),
                "model": config.model.model_copy(update={"dropout": 0.1}),
            }
        )
        eager = final_state(config, scale, device)
        answers = {"operation by operation again": final_state(config, scale, device)}
        if device.type == "cuda":
            train = config.train.model_copy(update={"cuda_graph": True})
            answers["CUDA graph"] = final_state(config.model_copy(update={"train": train}), scale, device)
        cells = []
        for name, state in answers.items():
            same = all(torch.equal(value, state[key]) for key, value in eager.items())
            largest = max(float((value - state[key]).abs().max()) for key, value in eager.items())
            cells.append(f"{name}: {'yes' if same else f'NO, off by up to {largest:.2g}'}")
        print(f"  {architecture:<15} {', '.join(cells)}", flush=True)


def peak_memory(step: Callable[[], None], device: torch.device) -> int:
    """Return the memory that steps take at their peak; on a GPU what PyTorch holds for them, graphs included."""
    if device.type != "cuda":
        return peak_bytes(step)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        step()
    wait(device)
    return torch.cuda.max_memory_reserved(device) - before


def memory(scale: Scale, device: torch.device) -> None:
    """Print the peak memory of a step."""
    print("peak memory of a step, beside weights and windows")
    for batch in BATCHES:
        for architecture in SIZES:
            config = configuration(scale, architecture, batch, "float32")
            size = (scale.width(architecture), scale.layers, 1, (scale.grid,) * 2, "circular")
            paper = PaperForecaster(architecture, *size).to(device)
            x_BTCHW = torch.randn(batch, scale.steps + 1, 1, scale.grid, scale.grid, device=device)
            found = {
                "paper": peak_memory(training_step(paper, x_BTCHW), device),
                "eager": peak_memory(our_step(config, scale, device), device),
            }
            if device.type == "cuda":
                train = config.train.model_copy(update={"cuda_graph": True})
                graph = our_step(config.model_copy(update={"train": train}), scale, device)
                found["graph"] = peak_memory(graph, device)
            cells = "   ".join(f"{name} {value / 1e6:.1f} MB" for name, value in found.items())
            print(f"  batch {batch}  {architecture:<15} {cells}", flush=True)


def layouts(scale: Scale, device: torch.device) -> None:
    """Print the time of a convolution with its gradients, by layout, width and precision."""
    print("a 3 x 3 convolution of all teacher-forced frames of batch 8 to three blocks, with its gradients, in ms")
    frames = 8 * scale.forced
    for width in (24, 25, 28, 32, 40, 48, 49):
        works: dict[str, Callable[[], Any]] = {}
        for precision in PRECISIONS:
            for name, layout in (("default", torch.contiguous_format), ("channels last", torch.channels_last)):
                x = torch.randn(frames, width, scale.grid, scale.grid, device=device)
                weight = torch.randn(3 * width, width, 3, 3, device=device)
                x, weight = (t.to(memory_format=layout).requires_grad_() for t in (x, weight))

                def work(precision: str = precision, x: torch.Tensor = x, weight: torch.Tensor = weight) -> None:
                    with running_in(precision, device):
                        torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), [x, weight])

                works[f"{precision} {name}"] = work
        seconds = seconds_of(works, scale, device)
        cells = "   ".join(f"{name} {value * 1e3:.3f}" for name, value in seconds.items())
        print(f"  width {width}: {cells}", flush=True)


def main() -> None:
    """Run all measurements and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="by default a GPU, if there is one")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and few steps, to try the command")
    parser.add_argument("--turns", type=int, help="turns of a measurement")
    options = parser.parse_args()
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and found == "cpu":
        parser.error("PyTorch finds no GPU: install a build of it for your GPU, or give --device cpu")
    if options.turns is not None and options.turns < 1:
        parser.error(f"--turns must be at least 1, not {options.turns}")
    device = torch.device(options.device or found)
    scale = TINY if options.tiny else Scale()
    if options.turns is not None:
        scale = replace(scale, turns=options.turns)
    started = time.perf_counter()
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}")
    else:
        torch.set_num_threads(1)
        print(
            f"a processor with {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}. Skipped without "
            f"a GPU: CUDA graphs, {FUSED_GATES}; tf32 is float32 here"
        )
    times(scale, device)
    equality(scale, device)
    memory(scale, device)
    layouts(scale, device)
    print(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
