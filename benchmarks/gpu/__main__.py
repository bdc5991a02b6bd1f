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
import time
from dataclasses import replace

import torch

from benchmarks.gpu.equality import equality
from benchmarks.gpu.layouts import layouts
from benchmarks.gpu.memory import memory
from benchmarks.gpu.step_times import times
from benchmarks.gpu.steps import FUSED_GATES, TINY, Scale


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
