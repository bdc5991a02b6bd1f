"""The recurrence by the direct form, on processors and as the kernel for GPUs, against log space in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mcrnn.models.minimal_recurrence import g, log_space_scan, minimal_recurrence, run_backward, run_forward
from tests.support.log_space import inputs, log_weights

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run step by step in Python; read when they are defined


def reference(blocks_TBKHW: torch.Tensor, h0_BCHW: torch.Tensor) -> torch.Tensor:
    """The paper's formulation of the same."""
    *gates, v = blocks_TBKHW.split(h0_BCHW.shape[1], dim=2)
    return log_space_scan(*log_weights(tuple(gates)), v, h0_BCHW)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-30))


@pytest.mark.parametrize("seed", range(200))
def test_direct_form_agrees_with_log_space_in_float64(seed: int) -> None:
    blocks, h0 = inputs(seed)
    weight = torch.randn(h0.shape, generator=torch.Generator().manual_seed(seed))
    ours = [blocks.clone().requires_grad_(), h0.clone().requires_grad_()]
    theirs = [blocks.double().requires_grad_(), h0.double().requires_grad_()]
    y = minimal_recurrence(*ours)
    expected = reference(*theirs)
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    (y * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert relative(a.grad, b.grad) < 1e-4


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("blocks", [2, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_for_gpus_agrees_with_the_direct_form(
    blocks: int, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    minimal_recurrence_triton = pytest.importorskip("mcrnn.models.minimal_recurrence_triton", exc_type=ImportError)
    generator = torch.Generator().manual_seed(1)
    steps, batch, channels = 6, 2, 5
    frames = 4 * torch.randn(steps * batch, blocks * channels, 7, 9, generator=generator)
    frames[0] = -1e4  # all gates shut
    blocks_TBKHW = frames.to(dtype).contiguous(memory_format=memory_format).unflatten(0, (steps, batch))
    h0, carry = torch.rand(2, batch, channels, 7, 9, generator=generator)
    h0 = h0.contiguous(memory_format=memory_format)
    grad = torch.randn(steps, batch, channels, 7, 9, generator=generator)
    h, expected = torch.empty_like(blocks_TBKHW[:, :, :channels], dtype=torch.float32), torch.empty(grad.shape)
    minimal_recurrence_triton.run_forward(blocks_TBKHW, h0, h)
    kept = blocks_TBKHW.float().clone()
    run_forward(kept, h0, expected)
    assert torch.allclose(h, expected, atol=1e-5)
    of_blocks, of_h0 = minimal_recurrence_triton.run_backward(grad, carry, blocks_TBKHW, h, h0)
    expected_of_blocks, expected_of_h0 = run_backward(grad, carry.clone(), kept, expected, h0)
    assert relative(of_blocks, expected_of_blocks) < (1e-5 if dtype == torch.float32 else 1e-2)
    assert relative(of_h0, expected_of_h0) < 1e-5


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize(("height", "width"), [(1, 5), (5, 1), (1, 1)])
def test_kernel_for_gpus_takes_any_strides_of_grids_of_one_row_or_column(height: int, width: int) -> None:
    minimal_recurrence_triton = pytest.importorskip("mcrnn.models.minimal_recurrence_triton", exc_type=ImportError)
    generator = torch.Generator().manual_seed(1)
    steps, batch, channels = 3, 2, 4
    blocks = torch.randn(steps, batch, 2 * channels, height, width, generator=generator)
    h0 = torch.rand(1, channels, 1, 1, generator=generator).expand(batch, channels, height, width)
    # a transposed gradient, which is contiguous whatever the stride of the axis of length one is
    grad = torch.randn(steps, batch, channels, width, height, generator=generator).transpose(-1, -2)
    h, kept = torch.empty(steps, batch, channels, height, width), blocks.clone()
    minimal_recurrence_triton.run_forward(blocks, h0, h)
    expected = torch.empty_like(h)
    run_forward(kept, h0, expected)
    assert torch.allclose(h, expected, atol=1e-5)
    ours = minimal_recurrence_triton.run_backward(grad, None, blocks, h, h0)
    for a, b in zip(ours, run_backward(grad, None, kept, expected, h0), strict=True):
        assert relative(a, b) < 1e-5


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from mcrnn.models import minimal_recurrence_triton

def compile(kernel, pointers, gates, dtype):
    names = kernel.arg_names
    signature = {n: f"*{dtype}" if n in ("blocks", "of_blocks") else "*fp32" if n in pointers else "i32" for n in names}
    constants = {"channels_first": False, "HAS_CARRY": True} if "carry" in names else {"channels_first": False}
    constants |= {"GATES": gates, "BLOCK": minimal_recurrence_triton.BLOCK}
    signature |= dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

for gates in (1, 2):
    for dtype in ("fp32", "bf16"):
        assert "st.global" in compile(minimal_recurrence_triton._forward, ("h0", "h"), gates, dtype)
        pointers = ("grad", "carry", "h", "h0", "of_h0")
        assert "st.global" in compile(minimal_recurrence_triton._backward, pointers, gates, dtype)
print("compiled")
"""


def test_kernel_compiles_for_gpus_without_one() -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr


@pytest.mark.parametrize("blocks", [2, 3])
def test_gradients_are_exact(blocks: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 2, 2 * blocks, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    h0 = torch.randn(2, 2, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(minimal_recurrence, (x, h0))


def test_one_step_is_the_definition() -> None:
    z_before = torch.tensor(0.75).logit()
    blocks, h0 = torch.tensor([z_before, 2.0]).reshape(1, 1, 2, 1, 1), torch.full((1, 1, 1, 1), 4.0)
    assert minimal_recurrence(blocks, h0).item() == pytest.approx(0.25 * 4 + 0.75 * 2.5)


def test_two_gates_are_normalised() -> None:
    blocks = torch.tensor([0.3, -0.4, 2.0]).reshape(1, 1, 3, 1, 1)
    f, i = torch.sigmoid(torch.tensor([0.3, -0.4]))
    expected = f / (f + i) * 4 + i / (f + i) * 2.5
    assert minimal_recurrence(blocks, torch.full((1, 1, 1, 1), 4.0)).item() == pytest.approx(expected.item())


def test_g_is_continuous_positive_and_as_the_paper_defines_it() -> None:
    v = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    assert torch.allclose(g(v), torch.where(v >= 0, v + 0.5, torch.sigmoid(v)))
    assert g(torch.zeros(())) == 0.5
    assert (g(v) > 0).all()


def test_extreme_inputs_give_finite_outputs_and_gradients() -> None:
    rows = [[-1e4, 1e4, 0.0, -1e4, 90.0, -90.0], [1e4, -1e4, -1e4, -1e4, -90.0, -90.0], [1e4, -1e4, 1e4, 0.0, 1.0, 1.0]]
    blocks = torch.tensor(rows).reshape(1, 1, 3, 1, 6).requires_grad_()
    h = minimal_recurrence(blocks, torch.full((1, 1, 1, 6), 0.5))
    h.sum().backward()
    assert h.isfinite().all()
    assert blocks.grad is not None
    assert blocks.grad.isfinite().all()


@pytest.mark.parametrize(("channels", "batch", "steps"), [(5, 2, 3), (4, 1, 3), (4, 2, 0)])
def test_shapes_that_do_not_fit_are_refused(channels: int, batch: int, steps: int) -> None:
    with pytest.raises(ValueError, match="expected two or three blocks of 2 channels for 2 samples"):
        minimal_recurrence(torch.zeros(steps, batch, channels, 3, 3), torch.zeros(2, 2, 3, 3))
