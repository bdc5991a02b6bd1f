"""The kernels for the gates of ConvLSTM and ConvGRU, run in Triton's interpreter, against plain operations."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mcrnn.models import gated_recurrence
from mcrnn.models.cells import cell_class

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run step by step in Python; read when they are defined


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("padding", "grid"), [("circular", (5, 7)), ("cylinder", (1, 6)), ("zeros", (6, 1))])
@pytest.mark.parametrize("name", ["convlstm", "convgru"])
def test_kernels_agree_with_plain_operations(
    name: str, padding: str, grid: tuple[int, int], precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = pytest.importorskip("mcrnn.models.gated_recurrence_triton", exc_type=ImportError)
    torch.manual_seed(0)
    cell = cell_class(name)(5, padding)
    x = torch.randn(2, 3, 5, *grid, requires_grad=True)
    # a state that is not dense, and not all zero
    state = tuple(torch.rand(2, 5, 1, 1).expand(2, 5, *grid).requires_grad_() for _ in range(cell.num_states))
    results = []
    for used in (None, kernels):
        monkeypatch.setattr(gated_recurrence, "kernels_for", lambda _, used=used: used)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            h, middle = cell(x[:, :2], state)
            h_last, last = cell(x[:, 2:], middle)
        loss = h.square().sum() + h_last.square().sum() + sum(s.sum() for s in last)
        results.append([h, h_last, *last, *torch.autograd.grad(loss, [x, *state, *cell.parameters()])])
    tolerance = 1e-5 if precision == torch.float32 else 2e-2
    for plain, fused in zip(*results, strict=True):
        assert plain.dtype == fused.dtype
        assert (plain - fused).norm() <= tolerance * plain.norm()


def test_kernels_are_used_only_if_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    h = torch.zeros(1)
    for on_processor, asked, expected in ((False, "", False), (True, "1", False), (False, "1", True)):
        monkeypatch.setenv("MCRNN_FUSED_GATES", asked)
        monkeypatch.setattr("mcrnn.device.on_processor", lambda _, answer=on_processor: answer)
        assert (gated_recurrence.kernels_for(h) is not None) == expected
    assert gated_recurrence.kernels_for(h.double()) is None


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from mcrnn.models import gated_recurrence_triton as kernels

NUMBERS = ("size", "channels", "grid", "padded")
PRECISE = ("h", "c", "h_before", "c_before", "state", "carry", "grad", "of_c", "of_c_before", "of_h_before",
           "total_of_h")

def kind(name, dtype):
    if name in NUMBERS or name.endswith(("_b", "_c", "_p")) and name != "of_c":
        return "i32"
    return "*i64" if name == "points" else "*fp32" if name in PRECISE else f"*{dtype}"

for name in ("_join", "_lstm_forward", "_lstm_backward", "_gru_reset", "_gru_update", "_gru_candidate_backward",
             "_gru_gates_backward"):
    kernel = getattr(kernels, name)
    for dtype, flag, capability in (("fp32", True, 80), ("fp32", False, 90), ("bf16", True, 90)):
        signature = {n: kind(n, dtype) for n in kernel.arg_names}
        constants = {n: flag for n in kernel.arg_names if n.startswith("HAS_")} | {"BLOCK": kernels.BLOCK}
        signature |= dict.fromkeys(constants, "constexpr")
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
        assert "st.global" in triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
print("compiled")
"""


@pytest.mark.soak
def test_kernels_compile_for_gpus_without_one() -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr
