"""An architecture is added by one class with its costs and one line in the table: here a sixth one, all the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.config.sections import Configuration, ModelConfig
from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.models import model_cost, parameter_count, trained_model, width_for
from mcrnn.models.cells import Cell, CellCosts, PreparedConvs, State
from mcrnn.models.convolution import PaddedConv
from mcrnn.models.forecaster import build_model
from mcrnn.schema import json_schema
from mcrnn.storage.local import LocalFolder
from mcrnn.training.session import OBJECTIVE, CallbackSession, End, Metrics
from mcrnn.training.session import State as TrainingState
from mcrnn.training.trainer import fit


class LeakyCell(Cell):
    """h_t = (h_{t-1} + tanh(weight * x_t + bias)) / 2, with gradients by autograd."""

    costs = CellCosts(inputs=1, blocks=1, blocks_computed=1, activations=1, padded_activations=1)

    def __init__(self, hidden_size: int, padding: str, kernel_size: int = 3) -> None:
        super().__init__(hidden_size, padding, kernel_size)
        self.conv = PaddedConv(hidden_size, hidden_size, kernel_size, padding)

    def run(self, x_NCHW: torch.Tensor, state: State, convs: PreparedConvs) -> tuple[torch.Tensor, State]:
        (h_BCHW,) = state
        outputs = []
        for candidate_BCHW in torch.tanh(self.conv(x_NCHW)).split(len(h_BCHW)):
            h_BCHW = (h_BCHW + candidate_BCHW) / 2
            outputs.append(h_BCHW)
        return torch.cat(outputs), (h_BCHW,)


@pytest.fixture(autouse=True)
def _line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "leaky", "tests.models.test_new_architecture:LeakyCell")


def configuration(**model: Any) -> Configuration:
    return Configuration.model_validate(
        {
            "name": "test",
            "data": {"store": "tiny.zarr", "coarsen": 2, "sequence_length": 6},
            "model": {"architecture": "leaky", "hidden_size": 6, "layers": 2, **model},
            "train": {"epochs": 6, "batch_size": 2, "teacher_forcing_steps": 4, "learning_rate": 5e-3},
            "validation": {"warm_up": 4, "horizon": 5},
        }
    )


def test_configuration_and_its_schema_know_the_name() -> None:
    assert configuration().model.architecture == "leaky"
    assert "leaky" in json_schema()["$defs"]["ModelConfig"]["properties"]["architecture"]["enum"]
    with pytest.raises(ValueError, match="or 'leaky'"):
        configuration(architecture="leaki")


@pytest.mark.parametrize("padding", ["circular", "cylinder", "zeros"])
def test_sizes_are_those_of_the_network(padding: str) -> None:
    config = ModelConfig.model_validate({"architecture": "leaky", "hidden_size": [4, 9], "kernel_size": 5})
    network = build_model(config, (2, 6, 9), padding)
    assert parameter_count(config, (2, 6, 9)) == sum(parameter.numel() for parameter in network.parameters())
    assert network(torch.randn(2, 5, 2, 6, 9), 3).shape == (2, 5, 2, 6, 9)
    assert model_cost(config, (2, 6, 9)).multiply_adds > 0
    assert width_for(config, (2, 6, 9), 10_000) > 9


def test_trained_model_is_read_back_from_its_files(store: FieldStore, tmp_path: Path) -> None:
    config = configuration()
    history: list[Metrics] = []
    states: list[TrainingState] = []

    def on_report(metrics: Metrics, state: TrainingState) -> None:
        history.append(metrics)
        states.append(state)

    assert fit(config, FieldData.load(store, config.data), CallbackSession(on_report)) == End.FINISHED
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1][OBJECTIVE] < history[0][OBJECTIVE]

    folder = LocalFolder(tmp_path / "model")
    field = FieldDescription.of(store, config.data)
    trained_model.save(folder, config, field, states[-1]["model"])
    assert json.loads(folder.read("config.json"))["configuration"]["model"]["architecture"] == "leaky"
    loaded = trained_model.load(folder)
    assert isinstance(next(loaded.network.cells.children()), LeakyCell)
    frames = torch.from_numpy(store.load("test", 2))[:, :5]
    assert loaded.forecast(frames, 3).shape == (4, 3, 1, 8, 8)


def test_gradients_of_a_cell_in_plain_pytorch_are_exact() -> None:
    cell = LeakyCell(2, "cylinder").double()
    x = torch.randn(1, 3, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(cell, {"conv.weight": weight, "conv.bias": bias}, (x, state))[0]

    state = cell.initial_state(x[:, 0])
    parameters = [parameter.detach().requires_grad_() for parameter in cell.conv.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters))
