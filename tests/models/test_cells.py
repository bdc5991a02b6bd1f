"""One conformance suite for all cells."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.models import Forecaster, matrix_convolution
from mcrnn.models.cells import Cell, cell_class
from mcrnn.models.convolution import PaddedConv
from mcrnn.models.prepared_convolution import _parameter_gradients
from tests.support.device_operations import DeviceOperations

PADDINGS = ("circular", "cylinder", "zeros")


@pytest.fixture(params=[(name, padding) for name in ARCHITECTURES for padding in PADDINGS], ids="-".join)
def cell(request: pytest.FixtureRequest) -> Cell:
    name, padding = request.param
    torch.manual_seed(0)
    return cell_class(name)(4, padding)


def sequence(batch: int = 2, time: int = 7, height: int = 6, width: int = 8) -> torch.Tensor:
    return torch.randn(batch, time, 4, height, width, generator=torch.Generator().manual_seed(3))


def stepwise(cell: Cell, x_BTCHW: torch.Tensor) -> torch.Tensor:
    state = cell.initial_state(x_BTCHW[:, 0])
    outputs = []
    for x_BCHW in x_BTCHW.unbind(1):
        h_BCHW, state = cell.step(x_BCHW, state)
        outputs.append(h_BCHW)
    return torch.stack(outputs, dim=1)


def test_sequence_equals_steps(cell: Cell) -> None:
    x = sequence()
    h, _ = cell(x, cell.initial_state(x[:, 0]))
    assert h.shape == x.shape
    assert torch.allclose(h, stepwise(cell, x), rtol=0, atol=1e-5)


def test_gradients_of_sequence_equal_those_of_steps(cell: Cell) -> None:
    gradients = []
    for run in (lambda x: cell(x, cell.initial_state(x[:, 0]))[0], lambda x: stepwise(cell, x)):
        x = sequence().requires_grad_()
        cell.zero_grad()
        run(x).square().sum().backward()
        assert x.grad is not None
        gradients.append([x.grad.clone(), *(p.grad.clone() for p in cell.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1]) > 2
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


def test_state_carries_across_a_split_sequence(cell: Cell) -> None:
    x = sequence()
    whole, end = cell(x, cell.initial_state(x[:, 0]))
    first, state = cell(x[:, :3], cell.initial_state(x[:, 0]))
    second, split_end = cell(x[:, 3:], state)
    assert torch.allclose(torch.cat([first, second], dim=1), whole, rtol=0, atol=1e-6)
    for a, b in zip(end, split_end, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_gradients_are_exact(cell: Cell) -> None:
    cell = cell.double()
    x = sequence(batch=1, time=3, height=3, width=4).double().requires_grad_()

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h, state = cell(x, cell.initial_state(x[:, 0]))
        return h, *state

    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)


def test_gradients_reach_the_state_and_every_parameter(cell: Cell) -> None:
    x = sequence()
    state = tuple(s.detach().requires_grad_() for s in cell.initial_state(x[:, 0]))
    h, end = cell(x, state)
    sum(value.sum() for value in (h[:, 2], *end)).backward()  # type: ignore[union-attr]
    for tensor in (*state, *cell.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_same_input_gives_the_same_bits(cell: Cell) -> None:
    results = []
    for _ in range(2):
        cell.zero_grad()
        x = sequence().requires_grad_()
        h, _ = cell(x, cell.initial_state(x[:, 0]))
        h.square().sum().backward()
        results.append([h, x.grad, *(p.grad for p in cell.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (1, 3, 5, 1), (5, 2, 3, 3), (3, 40, 9, 11)])
def test_any_batch_length_and_grid(cell: Cell, shape: tuple[int, int, int, int]) -> None:
    x = sequence(*shape).requires_grad_()
    h, state = cell(x, cell.initial_state(x[:, 0]))
    assert h.shape == x.shape
    assert all(s.shape == x[:, 0].shape for s in state)
    assert torch.allclose(h, stepwise(cell, x), rtol=0, atol=1e-5)
    h.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_double_precision_all_through(cell: Cell) -> None:
    x = sequence()
    single, _ = cell(x, cell.initial_state(x[:, 0]))
    cell = cell.double()
    h, state = cell(x.double(), cell.initial_state(x[:, 0].double()))
    assert h.dtype == state[0].dtype == torch.float64
    assert torch.allclose(h, single.double(), atol=1e-5)


def test_bfloat16_convolves_so_and_recurs_in_float32(cell: Cell) -> None:
    x = sequence().requires_grad_()
    exact, _ = cell(x, cell.initial_state(x[:, 0]))
    with torch.autocast("cpu", torch.bfloat16):
        h, state = cell(x, cell.initial_state(x[:, 0]))
    assert h.dtype == state[0].dtype == torch.float32
    assert 0 < (h - exact).abs().max() < 0.05
    h.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in cell.parameters())


def test_moves_to_another_device(cell: Cell) -> None:
    cell = cell.to("meta")
    x = sequence().to("meta")
    h, state = cell(x, cell.initial_state(x[:, 0]))
    assert h.device == state[0].device == torch.device("meta")
    assert h.shape == x.shape


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_state_dict_carries_the_function(name: str) -> None:
    cell, other = cell_class(name)(4, "circular"), cell_class(name)(4, "circular")
    other.load_state_dict(cell.state_dict())
    x = sequence()
    assert torch.equal(other(x, other.initial_state(x[:, 0]))[0], cell(x, cell.initial_state(x[:, 0]))[0])


@pytest.mark.parametrize(
    "padding", ["circular", *(pytest.param(each, marks=pytest.mark.soak) for each in PADDINGS if each != "circular")]
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compiles(name: str, padding: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    cell = cell_class(name)(4, padding)
    x = sequence().requires_grad_()
    plain, _ = cell(x, cell.initial_state(x[:, 0]))
    # what the compiler sees, without the C++ compiler that its own backend needs
    compiled = torch.compile(cell, backend="aot_eager")
    h, _ = compiled(x, cell.initial_state(x[:, 0]))
    assert torch.allclose(h, plain, atol=1e-6)
    of_plain, of_compiled = (torch.autograd.grad(y.square().sum(), [x, *cell.parameters()]) for y in (plain, h))
    for a, b in zip(of_plain, of_compiled, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_nothing_is_kept_between_calls(cell: Cell) -> None:
    x = sequence()
    first, _ = cell(x, cell.initial_state(x[:, 0]))
    cell(sequence(batch=3, time=2), cell.initial_state(sequence(batch=3)[:, 0]))
    again, _ = cell(x, cell.initial_state(x[:, 0]))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n.startswith("min")])
def test_minimal_cells_start_from_one_half(name: str) -> None:
    x = sequence()
    (h0,) = cell_class(name)(4, "zeros").initial_state(x[:, 0])
    assert torch.equal(h0, torch.full_like(h0, 0.5))


def padded_convolution(x_NCHW: torch.Tensor, conv: PaddedConv) -> torch.Tensor:
    """As the cells do it."""
    prepared = conv.prepare()
    return prepared.convolve(x_NCHW, x_NCHW.dtype)[0]


def test_padding_wraps_what_the_boundary_says() -> None:
    x = torch.zeros(1, 1, 4, 5)
    x[0, 0, 0, 0] = 1.0  # a corner: its neighbours across both edges show what is wrapped
    touched = {}
    for padding in PADDINGS:
        conv = PaddedConv(1, 1, 3, padding)
        torch.nn.init.ones_(conv.weight)
        torch.nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        touched[padding] = padded_convolution(x, conv)[0, 0] > 0.5
    assert touched["zeros"].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert touched["cylinder"].nonzero().tolist() == [[0, 0], [0, 1], [0, 4], [1, 0], [1, 1], [1, 4]]
    assert touched["circular"].sum() == 9
    assert touched["circular"][3, 4]


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("way", ["convolution", "product", "of a GPU"])
def test_convolution_and_its_gradients_are_those_of_torch(
    padding: str, frames: int, kernel_size: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix_convolution, "is_faster", lambda _: way == "product")
    monkeypatch.setattr("mcrnn.device.on_processor", lambda _: way != "of a GPU")
    monkeypatch.setattr(matrix_convolution, "VALUES_AT_A_TIME", 7 * 3 * kernel_size**2 * 4)  # four of the six rows
    torch.manual_seed(0)
    conv = PaddedConv(3, 4, kernel_size, padding)
    prepared, p = conv.prepare(), kernel_size // 2
    x, grad = torch.randn(frames, 3, 6, 7, requires_grad=True), torch.randn(frames, 4, 6, 7)
    wide = x
    if padding != "zeros":
        wide = torch.nn.functional.pad(wide, (p, p, 0, 0), mode="circular")
    if padding == "circular":
        wide = torch.nn.functional.pad(wide, (0, 0, p, p), mode="circular")
    rest = {"circular": (0, 0), "cylinder": (p, 0), "zeros": (p, p)}[padding]
    y = torch.nn.functional.conv2d(wide, conv.weight, conv.bias, padding=rest)
    y.backward(grad)
    with torch.no_grad():
        ours, convolved = prepared.convolve(x, x.dtype)
        assert torch.allclose(ours, y, atol=1e-5)
        of_x = torch.empty_like(x)
        prepared.input_gradient(grad, of_x)
        of_parameters = _parameter_gradients(grad, convolved, prepared.weight, prepared.boundary, True)
    assert x.grad is not None
    assert torch.allclose(of_x, x.grad, atol=1e-4)
    for ours, parameter in zip(of_parameters, conv.parameters(), strict=True):
        assert torch.allclose(ours, parameter.grad, atol=1e-4)


def test_gradients_of_parameters_belong_to_their_backward_pass() -> None:
    torch.manual_seed(0)
    model = Forecaster("minconvgru", hidden_size=4, layers=2, channels=1, height=6, width=8)
    x = torch.randn(1, 8, 1, 6, 8, requires_grad=True)

    def gradients() -> list[torch.Tensor]:
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model(x, 3).square().sum().backward()
    once = gradients()
    y = model(x, 3).square().sum()
    torch.autograd.grad(y, x, retain_graph=True)  # stops before it comes to the parameters
    for passes in (1, 2):  # through the same graph
        model.zero_grad()
        y.backward(retain_graph=True)
        for a, b in zip(once, gradients(), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5), passes
    model.zero_grad()
    for part in (y for _ in range(2)):
        part.backward(retain_graph=True)
    for a, b in zip(once, gradients(), strict=True):
        assert torch.allclose(2 * a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_parameters_are_right_with_checkpointing(name: str, reentrant: bool) -> None:
    torch.manual_seed(0)
    cell = cell_class(name)(4, "circular")
    x = sequence()

    def gradients(recomputed: tuple[bool, ...]) -> tuple[torch.Tensor, ...]:
        cell.zero_grad()
        convs = cell.prepare()

        def run(x_BCHW: torch.Tensor, *state: torch.Tensor) -> tuple[torch.Tensor, ...]:
            h_BCHW, state = cell.run(x_BCHW, state, convs)
            return h_BCHW, *state

        state, outputs = cell.initial_state(x[:, 0]), []
        for x_BCHW, again in zip(x.requires_grad_().unbind(1), recomputed, strict=False):
            one = checkpoint(run, x_BCHW, *state, use_reentrant=reentrant) if again else run(x_BCHW, *state)
            outputs.append(one[0])
            state = tuple(one[1:])
        torch.stack(outputs).square().sum().backward()
        return tuple(p.grad.clone() for p in cell.parameters() if p.grad is not None)

    # with reentrant checkpointing a step's backward pass runs within that of the steps around it
    for a, b in zip(gradients((False,) * 4), gradients((False, True, True, False)), strict=True):
        assert (a - b).norm() < 1e-4 * a.norm()


def test_a_trace_and_inference_leave_later_runs_as_they_are() -> None:
    conv = PaddedConv(3, 4, 3, "circular")
    with FakeTensorMode(allow_non_fake_inputs=True):
        conv(torch.empty(1, 3, 5, 11))
    with torch.inference_mode():
        conv(torch.ones(1, 3, 11, 5))
    for shape in ((1, 3, 5, 11), (1, 3, 11, 5)):
        x = torch.ones(shape, requires_grad=True)
        conv(x).sum().backward()
        assert type(x.grad) is torch.Tensor
        assert x.grad.isfinite().all()


def test_a_forward_pass_is_freed_without_the_garbage_collector() -> None:
    cell = cell_class("convlstm")(4, "circular")
    x = sequence()
    gc.collect()
    gc.disable()
    try:
        convs = cell.prepare()
        kept = weakref.ref(convs[0])
        h, state = cell.run(x[:, 0], cell.initial_state(x[:, 0]), convs)
        del convs
        assert kept() is not None
        del h, state
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_gradients_nothing_is_kept_for_them(name: str) -> None:
    torch.manual_seed(0)
    cell = cell_class(name)(16, "circular").requires_grad_(False)
    x = torch.randn(32, 20, 16, 16, 16)
    kept: list[weakref.ref[torch.Tensor]] = []
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal kept, largest
            result = func(*args, **(kwargs or {}))
            kept += [weakref.ref(t) for t in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(t)]
            kept = [reference for reference in kept if reference() is not None]
            storages = [t.untyped_storage() for reference in kept if (t := reference()) is not None]
            largest_now = {storage.data_ptr(): storage.nbytes() for storage in storages}
            largest = max(largest, sum(largest_now.values()))
            return result

    with Watch():
        cell(x, cell.initial_state(x[:, 0]))
    # the input with time first, the states, and for those that go step by step the states once more as they are joined
    assert largest < (2.6 if name.startswith("min") else 4.6) * x.nbytes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_frozen_weights_cost_no_gradients(name: str) -> None:
    cell = cell_class(name)(4, "circular").requires_grad_(False)
    x = sequence(height=16, width=16).requires_grad_()  # frames enough for the gradient of the weight
    h, _ = cell(x, cell.initial_state(x[:, 0]))
    with DeviceOperations() as operations:
        h.sum().backward()
    assert x.grad is not None
    assert operations.calls["convolution_backward"] == operations.calls["addmm_"] == 0


def test_circular_cells_commute_with_shifts() -> None:
    for name in ARCHITECTURES:
        torch.manual_seed(0)
        cell = cell_class(name)(4, "circular")
        x = sequence()
        shifted = x.roll((2, 3), dims=(3, 4))
        h, _ = cell(x, cell.initial_state(x[:, 0]))
        h_shifted, _ = cell(shifted, cell.initial_state(x[:, 0]))
        assert torch.allclose(h.roll((2, 3), dims=(3, 4)), h_shifted, atol=1e-5), name


def test_unknown_padding_and_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="padding must be circular, cylinder or zeros, not 'reflect'"):
        PaddedConv(1, 1, 3, "reflect")
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        PaddedConv(1, 1, 4, "zeros")


def test_grids_smaller_than_the_wrap_are_refused() -> None:
    cell = cell_class("minconvgru")(4, "circular", kernel_size=7)
    x = sequence(height=2)
    with pytest.raises(ValueError, match="a grid of 2 x 8 is too small"):
        cell(x, cell.initial_state(x[:, 0]))
