from __future__ import annotations

from typing import Any

import pytest
import torch

from mcrnn.models import Forecaster, parameter_count
from mcrnn.models.cells import CELLS


def small(architecture: str, **changes: Any) -> Forecaster:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 5, "layers": 2, "channels": 2, "height": 6, "width": 8}
    return Forecaster(architecture, **sizes | changes).eval()


def frames(batch: int = 2, time: int = 9) -> torch.Tensor:
    return torch.randn(batch, time, 2, 6, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("architecture", "hidden_size", "layers", "grid", "count"),
    [
        ("convgru", 28, 4, (16, 16), 171_813),
        ("convlstm", 25, 4, (16, 16), 182_524),
        ("minconvgru", 49, 4, (16, 16), 175_460),
        ("minconvlstm", 40, 4, (16, 16), 175_449),
        ("minconvexplstm", 40, 4, (16, 16), 175_449),
        ("convgru", 14, 3, (16, 32), 34_993),
        ("convlstm", 12, 3, (16, 32), 34_357),
        ("minconvgru", 24, 3, (16, 32), 34_393),
        ("minconvlstm", 20, 3, (16, 32), 35_713),
        ("minconvexplstm", 20, 3, (16, 32), 35_713),
    ],
)
def test_parameter_counts_of_the_paper(
    architecture: str, hidden_size: int, layers: int, grid: tuple[int, int], count: int
) -> None:
    sizes = {"hidden_size": hidden_size, "layers": layers, "channels": 1, "height": grid[0], "width": grid[1]}
    assert sum(p.numel() for p in Forecaster(architecture, **sizes).parameters()) == count  # type: ignore[arg-type]
    assert parameter_count(architecture, **sizes) == count


@pytest.mark.parametrize("architecture", CELLS)
@pytest.mark.parametrize("decode", ["residual", "hidden"])
@pytest.mark.parametrize("tanh_encoder", [False, True])
def test_teacher_forcing_equals_single_steps_on_the_truth(architecture: str, decode: str, tanh_encoder: bool) -> None:
    model = small(architecture, decode=decode, tanh_encoder=tanh_encoder)
    x = frames()
    with torch.no_grad():
        together = model(x)
        states = [cell.initial_state(x[:, 0]) for cell in model._cells()]
        kernels = [cell.kernels() for cell in model._cells()]
        single = [model._advance(x[:, t], states, kernels) for t in range(x.shape[1])]
    assert torch.allclose(together, torch.stack(single, dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", CELLS)
def test_closed_loop_feeds_each_output_back(architecture: str) -> None:
    model = small(architecture)
    x = frames()
    with torch.no_grad():
        y = model(x, teacher_forcing_steps=4)
        # the same outputs when the model's own are handed in as if they were the truth
        fed = torch.cat([x[:, :4], y[:, 3:-1]], dim=1)
        assert torch.allclose(model(fed), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", CELLS)
def test_later_truth_is_not_looked_at(architecture: str) -> None:
    model = small(architecture)
    x = frames()
    other = x.clone()
    other[:, 4:] = 99.0
    with torch.no_grad():
        assert torch.equal(model(x, 4), model(other, 4))
        assert torch.equal(model(x, 4), model(x[:, :4], 4, steps=9))


def test_gradients_flow_through_the_closed_loop() -> None:
    model = small("minconvgru")
    x = frames().requires_grad_()
    model(x, 4)[:, -1].sum().backward()
    assert x.grad is not None
    assert (x.grad[:, :4].abs().sum((0, 2, 3, 4)) > 0).all()
    assert (x.grad[:, 4:] == 0).all()


def test_forecast_starts_with_the_frame_after_the_last_given() -> None:
    model = small("convlstm")
    x = frames()
    with torch.no_grad():
        assert torch.equal(model.forecast(x[:, :4], 6), model(x, 4)[:, 3:9])
        assert model.forecast(x, 1).shape == (2, 1, 2, 6, 8)


@pytest.mark.parametrize("architecture", CELLS)
@pytest.mark.parametrize("decode", ["residual", "hidden"])
def test_every_trained_parameter_gets_a_gradient(architecture: str, decode: str) -> None:
    model = small(architecture, decode=decode)
    model(frames(), 5).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("shape", "steps", "message"),
    [
        ((2, 9, 1, 6, 8), 4, r"expected frames of shape \(batch, time, 2, 6, 8\)"),
        ((2, 9, 2, 8, 6), 4, "expected frames of shape"),
        ((9, 2, 6, 8), 4, "expected frames of shape"),
        ((2, 9, 2, 6, 8), 0, "at least one teacher-forced step"),
        ((2, 0, 2, 6, 8), None, "at least one teacher-forced step"),
    ],
)
def test_wrong_input_is_refused(shape: tuple[int, ...], steps: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("convgru")(torch.zeros(shape), steps)


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="5 teacher-forced steps need as many frames, got 3"):
        small("convgru")(frames(time=3), 5, steps=9)


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown architecture 'transformer'; known: convgru"):
        small("transformer")
