from __future__ import annotations

from typing import Any

import pytest
import torch

from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.config.sections import Configuration, ModelConfig
from mcrnn.models import Forecaster, model_cost, parameter_count, width_for, with_resolved_sizes
from mcrnn.models.forecaster import build_model


def config(architecture: str, **fields: Any) -> ModelConfig:
    return ModelConfig.model_validate({"architecture": architecture, **fields})


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
    sizes = config(architecture, hidden_size=hidden_size, layers=layers)
    assert parameter_count(sizes, (1, *grid)) == count
    assert width_for(sizes.model_copy(update={"hidden_size": 1}), (1, *grid), count) == hidden_size


OPTIONS: list[dict[str, Any]] = [
    {"hidden_size": 7, "layers": 2},
    {"hidden_size": [4, 9, 9, 5]},
    {"hidden_size": 6, "layers": 3, "kernel_size": 5},
    {"hidden_size": 6, "layers": 2, "norm": "group", "norm_groups": 3},
    {"hidden_size": 5, "layers": 2, "decode": "hidden", "channels_out": 1, "tanh_encoder": True},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("fields", OPTIONS, ids=str)
def test_count_is_that_of_the_network(architecture: str, fields: dict[str, Any]) -> None:
    sizes = config(architecture, **fields)
    network = build_model(sizes, (2, 6, 9), "circular")
    assert parameter_count(sizes, (2, 6, 9)) == sum(p.numel() for p in network.parameters())


def kept_bytes(network: Forecaster, x_BTCHW: torch.Tensor, steps: int) -> int:
    """What a forward pass keeps for its backward pass, parameters aside."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = network(x_BTCHW, steps)
        total = sum(kept.values())
    del y
    return total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("fields", [{"hidden_size": 16, "layers": 3}, {"hidden_size": [8, 16, 8], "kernel_size": 5}])
def test_activation_memory_is_what_a_step_keeps(architecture: str, fields: dict[str, Any]) -> None:
    sizes = config(architecture, **fields)
    network = build_model(sizes, (1, 24, 32), "circular")
    x = torch.randn(2, 20, 1, 24, 32)
    measured = kept_bytes(network, x, 20)
    assert 40 * model_cost(sizes, (1, 24, 32)).activation_bytes == pytest.approx(measured, rel=0.1)


def test_multiply_adds_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for architecture in ARCHITECTURES:
        sizes = config(architecture, hidden_size=[8, 12], kernel_size=3)
        network = build_model(sizes, (1, 10, 12), "zeros")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.randn(2, 5, 1, 10, 12))
        assert 2 * 10 * model_cost(sizes, (1, 10, 12)).multiply_adds == counter.get_total_flops(), architecture


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("budget", [5_000, 60_000, 1_000_000])
@pytest.mark.parametrize("layers", [1, 4])
def test_width_comes_nearest_to_a_budget(architecture: str, budget: int, layers: int) -> None:
    sizes = config(architecture, layers=layers)
    width = width_for(sizes, (1, 16, 16), budget)

    def distance(width: int) -> int:
        return abs(parameter_count(config(architecture, hidden_size=width, layers=layers), (1, 16, 16)) - budget)

    assert distance(width) <= min(distance(width - 1) if width > 1 else budget, distance(width + 1))


def test_width_respects_the_groups() -> None:
    assert width_for(config("convgru", norm="group", norm_groups=8, hidden_size=8), (1, 16, 16), 100_000) % 8 == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_width_can_be_rounded_to_multiples(architecture: str) -> None:
    fields: dict[str, Any] = {"parameters": 175_000, "width_multiple": 8}
    width = width_for(config(architecture, **fields), (1, 16, 16), 175_000)
    counts = {w: parameter_count(config(architecture, hidden_size=w), (1, 16, 16)) for w in range(8, 96, 8)}
    assert width == min(counts, key=lambda w: abs(counts[w] - 175_000))
    grouped = config(architecture, norm="group", norm_groups=6, **fields)
    assert width_for(grouped, (1, 16, 16), 175_000) % 24 == 0


def test_a_multiple_without_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width_multiple \(8\) rounds the width that parameters asks for: give"):
        config("convgru", hidden_size=20, width_multiple=8)
    whole = Configuration.model_validate(
        {
            "name": "n",
            "data": {"store": "s"},
            "model": {"architecture": "convgru", "parameters": 171_813, "width_multiple": 8},
            "train": {},
        }
    )
    resolved = with_resolved_sizes(whole, (1, 16, 16)).model
    assert (resolved.hidden_size, resolved.parameters, resolved.width_multiple) == (24, None, 1)


def test_budgets_out_of_reach_are_refused() -> None:
    with pytest.raises(ValueError, match="no width of convlstm with 4 layers comes near 100 parameters: a width of 1"):
        width_for(config("convlstm"), (1, 16, 16), 100)
