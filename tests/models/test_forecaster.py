from __future__ import annotations

from typing import Any

import pytest
import torch

from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.models import Forecaster


def small(architecture: str, **changes: Any) -> Forecaster:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 5, "layers": 2, "channels": 2, "height": 6, "width": 8}
    return Forecaster(architecture, **sizes | changes).eval()


def frames(batch: int = 2, time: int = 9) -> torch.Tensor:
    return torch.randn(batch, time, 2, 6, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("decode", ["residual", "hidden"])
@pytest.mark.parametrize("tanh_encoder", [False, True])
def test_teacher_forcing_equals_single_steps_on_the_truth(architecture: str, decode: str, tanh_encoder: bool) -> None:
    model = small(architecture, decode=decode, tanh_encoder=tanh_encoder)
    x = frames()
    with torch.no_grad():
        together = model(x)
        states = [cell.initial_state(x[:, 0]) for cell in model._cells()]
        convs, (norms,) = model._prepare(), model._norms_of_uses(1)
        single = [model._advance(x[:, t], states, convs, norms) for t in range(x.shape[1])]
    assert torch.allclose(together, torch.stack(single, dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_closed_loop_feeds_each_output_back(architecture: str) -> None:
    model = small(architecture)
    x = frames()
    with torch.no_grad():
        y = model(x, teacher_forcing_steps=4)
        # the same outputs when the model's own are handed in as if they were the truth
        fed = torch.cat([x[:, :4], y[:, 3:-1]], dim=1)
        assert torch.allclose(model(fed), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
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


@pytest.mark.parametrize("on_processor", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_of_all_parameters_are_exact_in_closed_loop(
    architecture: str, on_processor: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcrnn.device.on_processor", lambda _: on_processor)  # else the branches of a GPU are taken
    torch.manual_seed(0)
    model = Forecaster(architecture, hidden_size=[2, 3], channels=1, height=3, width=4, padding="cylinder").double()
    x = torch.randn(2, 2, 1, 3, 4, dtype=torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def run(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x, 2, 4))

    assert torch.autograd.gradcheck(run, parameters, fast_mode=True)


def test_forecast_starts_with_the_frame_after_the_last_given() -> None:
    model = small("convlstm")
    x = frames()
    with torch.no_grad():
        assert torch.equal(model.forecast(x[:, :4], 6), model(x, 4)[:, 3:9])
        assert model.forecast(x, 1).shape == (2, 1, 2, 6, 8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": [3, 6, 4], "layers": None},
        {"kernel_size": 5},
        {"kernel_size": 1},
        {"norm": "group", "hidden_size": 6, "norm_groups": 3},
        {"prediction": "increment"},
        {"channels_out": 1},
        {"channels_out": 1, "prediction": "increment", "decode": "hidden"},
        {"dropout": 0.3},
    ],
    ids=str,
)
def test_options_keep_teacher_forcing_equal_to_single_steps(architecture: str, changes: dict[str, Any]) -> None:
    model = small(architecture, **changes)
    x = frames()
    with torch.no_grad():
        states = [cell.initial_state(x[:, 0]) for cell in model._cells()]
        convs, (norms,) = model._prepare(), model._norms_of_uses(1)
        single = [model._advance(x[:, t], states, convs, norms) for t in range(x.shape[1])]
        assert torch.allclose(model(x), torch.stack(single, dim=1), rtol=0, atol=1e-5)
    assert model(x, 4).shape == (2, 9, model.channels_out, 6, 8)


def test_increment_adds_to_the_last_frame() -> None:
    torch.manual_seed(0)
    model = small("minconvlstm", prediction="increment")
    torch.nn.init.zeros_(model.decoder.weight)
    torch.nn.init.constant_(model.decoder.bias, 0.25)  # type: ignore[arg-type]
    x = frames()
    y = model(x, 4)
    assert torch.allclose(y[:, :4], x[:, :4] + 0.25)
    assert torch.allclose(y[:, 8], x[:, 3] + 6 * 0.25)


def test_channels_that_are_not_predicted_are_held_as_last_given() -> None:
    model = small("convlstm", channels_out=1)
    x = frames()
    with torch.no_grad():
        y = model(x, 4)
        held = x[:, 3:4, 1:].expand(-1, 5, -1, -1, -1)
        fed = torch.cat([x[:, :4], torch.cat([y[:, 3:-1], held], dim=2)], dim=1)
        assert torch.allclose(model(fed), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels_out", [1, 2])
def test_inputs_that_are_known_ahead_are_true_in_closed_loop(channels_out: int) -> None:
    model = small("minconvgru", channels=3, channels_out=channels_out, inputs=1)
    x = torch.randn(2, 9, 3, 6, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        y = model(x, 4)
        held = x[:, 3:4, channels_out:2].expand(-1, 5, -1, -1, -1)
        fed = torch.cat([x[:, :4], torch.cat([y[:, 3:-1], held, x[:, 4:, 2:]], dim=2)], dim=1)
        assert torch.allclose(model(fed), y, rtol=0, atol=1e-5)
        other = x.clone()
        other[:, 4:, :2] = 99.0
        assert torch.equal(model(other, 4), y)
        assert torch.equal(model.forecast(x[:, :4], 6, x[:, 4:, 2:]), y[:, 3:])
    with pytest.raises(ValueError, match="1 channels are known ahead, so 9 steps need as many frames, got 4"):
        model(x[:, :4], 4, 9)


def test_dropout_is_for_training_only() -> None:
    model = small("minconvgru", dropout=0.5)
    x = frames()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_group_norm_takes_any_grid(architecture: str) -> None:
    model, other = small(architecture, norm="group"), small(architecture, norm="group", height=3, width=5)
    other.load_state_dict(model.state_dict())
    assert other(torch.zeros(1, 2, 2, 3, 5)).shape == (1, 2, 2, 3, 5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_stays_near_and_gives_float32(architecture: str) -> None:
    model = small(architecture)
    x = frames()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = model(x, 4)
    assert y.dtype == torch.float32
    with torch.no_grad():
        assert 0 < (y - model(x, 4)).abs().max() < 0.2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_state_dict_round_trip(architecture: str) -> None:
    model, other = small(architecture, hidden_size=[4, 6]), small(architecture, hidden_size=[4, 6])
    torch.nn.init.normal_(other.decoder.weight)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(frames(), 4), other(frames(), 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decode": "all"}, "decode must be residual or hidden, not 'all'"),
        ({"prediction": "both"}, "prediction must be frame or increment"),
        ({"norm": "batch"}, "norm must be layer or group"),
        ({"norm": "group", "norm_groups": 2}, "norm_groups .2. must divide the hidden sizes, .5, 5."),
        ({"channels_out": 3}, "channels_out must be from 1 to the 2 channels of the field, not 3"),
        ({"hidden_size": [4, 5, 6]}, "layers .2. and hidden_size, which gives 3 widths, do not agree"),
        ({"hidden_size": 0}, "at least one layer of at least one channel"),
        ({"kernel_size": 2}, "kernel_size must be odd"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("convgru", **changes)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample is needed"):
        small("convgru")(frames(batch=0))
