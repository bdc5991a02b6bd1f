"""The memory that a step takes at its peak."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.steps import BATCHES, Scale, configuration, our_step, wait, with_graph
from benchmarks.models import peak_bytes, training_step
from benchmarks.paper_models import SIZES, PaperForecaster


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
                found["graph"] = peak_memory(our_step(with_graph(config), scale, device), device)
            cells = "   ".join(f"{name} {value / 1e6:.1f} MB" for name, value in found.items())
            print(f"  batch {batch}  {architecture:<15} {cells}", flush=True)
