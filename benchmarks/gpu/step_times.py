"""The time of a step beside the paper's formulation, and its share of what the device can multiply and copy."""

from __future__ import annotations

import torch

from benchmarks.gpu.steps import BATCHES, PRECISIONS, Scale, configuration, our_step, seconds_of, with_graph
from benchmarks.models import training_step
from benchmarks.paper_models import SIZES, PaperForecaster
from mcrnn.models import model_cost
from mcrnn.models.precision import running_in


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
        graphed = with_graph(config)
        works["graph"] = our_step(graphed, scale, device)
        if architecture in ("convlstm", "convgru"):
            works["eager fused"] = our_step(config, scale, device, fused=True)
            works["graph fused"] = our_step(graphed, scale, device, fused=True)
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
