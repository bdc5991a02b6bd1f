"""Checkpoints that the paper's own code wrote, and its output for a given input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.models import trained_model
from mcrnn.models.paper_checkpoint import load_checkpoint
from mcrnn.storage.local import LocalFolder

CHECKPOINTS = Path(__file__).parent / "paper_checkpoints"


def options(architecture: str) -> dict[str, Any]:
    model = yaml.safe_load((CHECKPOINTS / architecture / "config.yaml").read_text())["model"]
    return {"architecture": architecture, "padding": model["padding_mode"], "tanh_encoder": model["tanh_encoder"]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_output_is_that_of_the_papers_code(architecture: str) -> None:
    model = load_checkpoint(CHECKPOINTS / architecture / "model.ckpt", **options(architecture))
    with np.load(CHECKPOINTS / architecture / "io.npz") as arrays, torch.no_grad():
        y = model(torch.from_numpy(arrays["x"]), teacher_forcing_steps=9)
        assert y.shape == arrays["y"].shape
        assert np.abs(y.numpy() - arrays["y"]).max() < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loaded_models_can_be_trained(architecture: str) -> None:
    model = load_checkpoint(CHECKPOINTS / architecture / "model.ckpt", **options(architecture))
    model(torch.randn(1, 5, 1, 8, 8), 3).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_another_architecture_is_named(architecture: str) -> None:
    path = CHECKPOINTS / architecture / "model.ckpt"
    alike = {"minconvlstm", "minconvexplstm"} if architecture in ("minconvlstm", "minconvexplstm") else {architecture}
    for other in set(ARCHITECTURES) - alike:
        with pytest.raises(UserError, match=f"not a checkpoint of {other}: it looks like one of {min(alike)[:7]}"):
            load_checkpoint(path, architecture=other, padding="circular")


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


class Harmful:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


def test_files_that_are_none_are_refused_and_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.ckpt"
    text.write_text("no checkpoint")
    cases = {
        tmp_path / "absent.ckpt": "there is no checkpoint",
        tmp_path: "cannot read",
        text: "is not a checkpoint of the paper's code",
        save(tmp_path / "harm.ckpt", {"model_state_dict": {}, "best": Harmful()}): "is not a checkpoint of the paper's",
        save(tmp_path / "list.ckpt", [1]): "is not a checkpoint of the paper's code",
        save(tmp_path / "other.ckpt", {"model_state_dict": {"fc.weight": torch.zeros(1)}}): "its weights are fc",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_checkpoint(path, architecture="convgru", padding="circular")
    assert not (tmp_path / "harm").exists()


def test_scalars_of_numpy_are_read(tmp_path: Path) -> None:
    path = CHECKPOINTS / "minconvgru" / "model.ckpt"
    content = torch.load(path, weights_only=False)
    for value in (np.float32(0.5), np.float64(0.5), np.array(0.5, np.float32)):
        again = save(tmp_path / "again.ckpt", content | {"best_val_error": value})
        load_checkpoint(again, **options("minconvgru"))


def test_group_norm_needs_a_grid_and_takes_any(tmp_path: Path) -> None:
    content = torch.load(CHECKPOINTS / "minconvlstm" / "model.ckpt", weights_only=False)
    state = content["model_state_dict"]
    for name in [name for name in state if name.startswith("norms")]:
        state[name] = state[name][0]  # 5 channels
    for name in [name for name in state if name.startswith("norms")]:
        state[name] = torch.ones(5)
    path = save(tmp_path / "group.ckpt", content)
    with pytest.raises(UserError, match="does not tell its grid"):
        load_checkpoint(path, architecture="minconvlstm", padding="zeros")
    model = load_checkpoint(path, architecture="minconvlstm", padding="zeros", grid=(4, 6))
    assert model(torch.zeros(1, 3, 1, 4, 6)).shape == (1, 3, 1, 4, 6)


def test_another_grid_is_refused() -> None:
    with pytest.raises(UserError, match="is of a grid of 8 x 8, not 16 x 16"):
        load_checkpoint(CHECKPOINTS / "convgru" / "model.ckpt", **options("convgru"), grid=(16, 16))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_command_converts_by_the_runs_configuration(architecture: str, command: Any, root: Path) -> None:
    folder = CHECKPOINTS / architecture
    done = command("mcrnn.convert", folder / "model.ckpt", "converted", "--config", folder / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert f"{architecture}, " in done.stdout
    model = trained_model.load(LocalFolder(root / "converted"))
    with np.load(folder / "io.npz") as arrays:
        forecast = model.forecast(torch.from_numpy(arrays["x"][:, :9]), 6)
        assert np.abs(forecast.numpy() - arrays["y"][:, 8:]).max() < 1e-5
    assert model.config.model.padding == options(architecture)["padding"]


def test_converted_model_is_evaluated_on_a_store(command: Any, store: FieldStore, store_path: Path, root: Path) -> None:
    # the store of the tests is coarsened to the grid of the checkpoint
    coarsen = store.grid()[0] // 8
    checkpoint, config = (CHECKPOINTS / "minconvlstm" / name for name in ("model.ckpt", "config.yaml"))
    done = command(
        "mcrnn.convert",
        checkpoint,
        "converted",
        "--config",
        config,
        "--coarsen",
        str(coarsen),
        "--store",
        str(store_path),
    )
    assert done.returncode == 0, done.stderr
    done = command("mcrnn.evaluate", "converted", "--warm-up", "3", "--horizon", "4", "--out", "report")
    assert done.returncode == 0, done.stderr
    (metrics,) = json.loads((root / "report/metrics.json").read_text())
    assert metrics["architecture"] == "minconvlstm"
    assert metrics["rmse_closed_loop"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--padding", "zeros"], "which architecture?"),
        (["--architecture", "minconvgruu", "--padding", "zeros"], "did you mean 'minconvgru'?"),
        (["--architecture", "minconvgru"], "which padding?"),
        (["--architecture", "minconvgru", "--padding", "zeros", "--mean", "1.0"], "--mean and --std go together"),
        (["--config", "absent.yaml"], "cannot read 'absent.yaml'"),
    ],
)
def test_command_names_what_is_missing(arguments: list[str], message: str, command: Any, root: Path) -> None:
    shutil.copy(CHECKPOINTS / "minconvgru" / "model.ckpt", root / "model.ckpt")
    done = command("mcrnn.convert", "model.ckpt", "converted", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (root / "converted").exists()
