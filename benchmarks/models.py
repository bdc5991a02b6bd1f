"""Compare the five models with the paper's formulation: time and memory of a training step, and accuracy.

    python -m benchmarks.models [--repeats 15]
    python -m benchmarks.models --device cuda
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.models    # as without AVX-512

The networks have the paper's sizes: four layers, about 175,000 parameters, 16 x 16; windows have 25 frames, the first
20 teacher-forced. A step is forward, loss, backward, clipping and Adam. The baseline (`paper_models`) and ours have the
same weights and take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.paper_models import LAYERS, SIZES, PaperForecaster
from mcrnn.models import Forecaster
from mcrnn.models.minimal_recurrence import log_space_scan, minimal_recurrence
from mcrnn.models.precision import running_in
from mcrnn.training.numerics import keep_freed_memory

STEPS, TEACHER_FORCED = 25, 20
"""Steps of a window, and those of them that are teacher-forced."""
PROMISED = {
    ("minconvgru", 1): 2.8,
    ("minconvlstm", 1): 2.8,
    ("minconvexplstm", 1): 3.3,
    ("minconvgru", 8): 3.2,
    ("minconvlstm", 8): 3.2,
    ("minconvexplstm", 8): 4.5,
    **{(name, batch): 1.3 for name in ("convlstm", "convgru") for batch in (1, 8)},
}
"""How many times as fast as the baseline a step is at least, by architecture and batch size."""
CONVOLUTIONS = (
    "aten.convolution.default",
    "aten.convolution_backward.default",
    "aten.addmm.default",
    "aten.addmm.out",
    "aten.mm.default",
    "aten.mm.out",
    "aten.addmm_.default",
)
"""PyTorch's operators that are convolutions, or the products of matrices that stand for them."""


def pair(architecture: str, grid: int, device: str) -> tuple[Forecaster, PaperForecaster]:
    """Build our network and the baseline, with the same weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": 1, "height": grid, "width": grid, "padding": "circular"}
    ours = Forecaster(architecture, hidden_size=SIZES[architecture], layers=LAYERS, **sizes)
    baseline = PaperForecaster(architecture, SIZES[architecture], LAYERS, 1, (grid, grid), "circular")
    baseline.take_weights(ours)
    return ours.to(device), baseline.to(device)


def training_step(model: nn.Module, x_BTCHW: torch.Tensor, precision: str = "float32") -> Callable[[], None]:
    """Return a function that takes one training step of a model on these windows."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with running_in(precision, x_BTCHW.device):
            y_BTCHW = model(x_BTCHW[:, :-1], TEACHER_FORCED)
            (y_BTCHW.float() - x_BTCHW[:, 1:]).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def interleaved(works: dict[str, Callable[[], None]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Run the functions in turns, and return the median seconds of each; the first two turns do not count."""
    clock = time.process_time if device == "cpu" else time.perf_counter  # on processors others may compute as well
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 2):
        for name, work in works.items():
            started = clock()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


class ConvolutionRecorder(TorchDispatchMode):
    """Records the convolutions that run within its context, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in CONVOLUTIONS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @torch.no_grad()
    def replay(self) -> None:
        """Run the recorded convolutions again, and nothing else."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def peak_bytes(step: Callable[[], None]) -> int:
    """Return the peak memory of the tensors of a step."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    allocated = peak = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def times(repeats: int) -> None:
    """Print the time of a training step, and of the baseline's."""
    print(
        f"training step, {STEPS} frames, {TEACHER_FORCED} teacher-forced, 16 x 16, one thread; "
        f"medians of {repeats} turns of processor time; {torch.backends.cpu.get_cpu_capability()}"
    )
    for batch in (1, 8):
        x = torch.randn(batch, STEPS + 1, 1, 16, 16)
        baseline_of: dict[str, float] = {}
        ours_of: dict[str, float] = {}
        for architecture in SIZES:
            ours, baseline = pair(architecture, 16, "cpu")
            works = {"ours": training_step(ours, x), "baseline": training_step(baseline, x)}
            if architecture == "minconvexplstm":
                with ConvolutionRecorder() as convolutions:
                    works["ours"]()
                works["convolutions"] = convolutions.replay
            seconds = interleaved(works, repeats if batch == 1 else max(5, repeats // 2))
            ours_of[architecture], baseline_of[architecture] = seconds["ours"], seconds["baseline"]
            ratio, promised = seconds["baseline"] / seconds["ours"], PROMISED[architecture, batch]
            print(
                f"  batch {batch}  {architecture:<15} {seconds['ours'] * 1e3:7.1f} ms   baseline "
                f"{seconds['baseline'] * 1e3:7.1f} ms   {ratio:.2f}x (promised: at least {promised})",
                flush=True,
            )
            if "convolutions" in seconds:
                share = seconds["ours"] / seconds["convolutions"]
                print(f"           whole step over its convolutions alone: {share:.2f} (promised: at most 1.6)")
        fastest = ours_of["minconvexplstm"]
        promise = " (promised: at least 2.5)" if batch == 1 else ""
        print(
            f"           minconvexplstm beside convlstm: {baseline_of['convlstm'] / fastest:.2f}x the baseline's"
            f"{promise}, "
            f"{ours_of['convlstm'] / fastest:.2f}x ours"
        )


def memory() -> None:
    """Print the peak memory of a training step, and of the baseline's."""
    print("peak memory of the tensors of a step")
    for batch in (1, 8):
        x = torch.randn(batch, STEPS + 1, 1, 16, 16)
        for architecture in SIZES:
            ours, baseline = (peak_bytes(training_step(model, x)) for model in pair(architecture, 16, "cpu"))
            promised = 0.6 if architecture.startswith("min") else 1.0
            print(
                f"  batch {batch}  {architecture:<15} {ours / 1e6:6.1f} MB   baseline {baseline / 1e6:6.1f} MB   "
                f"{ours / baseline:.2f} of it (promised: at most {promised})",
                flush=True,
            )


def accuracy() -> None:
    """Print the errors of the recurrence and of log space, both in float32, against log space in float64."""
    from tests.support.log_space import inputs, log_weights

    def run(
        function: Callable[..., torch.Tensor], blocks: torch.Tensor, h0: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = blocks.to(dtype).requires_grad_()
        h = function(blocks, h0.to(dtype))
        weight = torch.randn(h.shape[1:], generator=torch.Generator().manual_seed(0)).to(dtype)
        (h * weight).sum().backward()
        assert blocks.grad is not None
        return h.detach().double(), blocks.grad.double()

    def log_space(blocks: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
        *gates, v = blocks.split(h0.shape[1], dim=2)
        return log_space_scan(*log_weights(tuple(gates)), v, h0)

    worst = {"direct": [0.0, 0.0], "log space": [0.0, 0.0]}
    for seed in range(200):
        blocks, h0 = inputs(seed)
        h, grad = run(log_space, blocks, h0, torch.float64)
        for name, function in (("direct", minimal_recurrence), ("log space", log_space)):
            h32, grad32 = run(function, blocks, h0, torch.float32)
            error_h = float((h32 - h).abs().max() / h.abs().max().clamp(min=1))
            error_grad = float((grad32 - grad).norm() / grad.norm())
            worst[name] = [max(worst[name][0], error_h), max(worst[name][1], error_grad)]
    print("float32 against log space in float64, 200 random configurations, inputs up to 1e4; the worst")
    for name, (error_h, error_grad) in worst.items():
        promise = " (promised: 1e-5, 1e-4)" if name == "direct" else ""
        print(f"  {name:<10} outputs {error_h:.1e}, over the largest; gradients {error_grad:.1e} relative{promise}")


def cuda(repeats: int) -> None:
    """Print the times on a GPU, and the fused kernel's time over the time that its memory traffic takes."""
    from mcrnn.models.minimal_recurrence import implementation

    print(torch.cuda.get_device_name())
    for grid in (16, 64, 256):
        for batch in (1, 8, 64):
            for architecture in SIZES:
                ours, baseline = pair(architecture, grid, "cuda")
                x = torch.randn(batch, STEPS + 1, 1, grid, grid, device="cuda")
                works = {f"ours {p}": training_step(ours, x, p) for p in ("float32", "bf16")}
                works |= {f"baseline {p}": training_step(baseline, x, p) for p in ("float32", "bf16")}
                try:
                    seconds = interleaved(works, repeats, "cuda")
                except torch.OutOfMemoryError:
                    print(f"  {grid:>3}  batch {batch:>2}  {architecture:<15} does not fit")
                    continue
                cells = [
                    f"{p}: {seconds[f'ours {p}'] * 1e3:.2f} ms, {seconds[f'baseline {p}'] / seconds[f'ours {p}']:.2f}x"
                    for p in ("float32", "bf16")
                ]
                print(f"  {grid:>3}  batch {batch:>2}  {architecture:<15} {'   '.join(cells)}", flush=True)
    steps, batch, channels, grid = TEACHER_FORCED, 64, 40, 64
    shape = (steps * batch, 2 * channels, grid, grid)
    blocks = torch.randn(shape, device="cuda").to(memory_format=torch.channels_last).unflatten(0, (steps, batch))
    h0 = torch.rand(batch, channels, grid, grid, device="cuda").to(memory_format=torch.channels_last)
    h = torch.empty_like(blocks[:, :, :channels])
    copied = torch.empty_like(blocks)
    forward = implementation(h0).run_forward

    def copy() -> None:
        copied.copy_(blocks)

    seconds = interleaved({"kernel": lambda: forward(blocks, h0, h), "copy": copy}, repeats, "cuda")
    # a copy reads and writes two blocks, the kernel reads two and writes one
    floor = seconds["copy"] * 3 / 4
    print(f"  fused kernel: {seconds['kernel'] / floor:.2f} of its memory floor (aim: at most 1.5)")


def main() -> None:
    """Run the benchmarks of the chosen device and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.device == "cuda":
        cuda(options.repeats)
        return
    keep_freed_memory()  # as training does; it serves the baseline as well
    times(options.repeats)
    memory()
    accuracy()


if __name__ == "__main__":
    main()
