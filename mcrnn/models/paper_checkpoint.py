"""Read checkpoints of the paper's own code, https://github.com/AdaptiveAILab/minconvrnns.

A checkpoint holds weights only; padding, normalisation and variable stand in the run's configuration. What the
converter writes is a model directory, which evaluation and the registry take.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mcrnn.errors import UserError
from mcrnn.models.forecaster import Forecaster


def load_checkpoint(
    path: str | Path,
    *,
    architecture: str,
    padding: str,
    tanh_encoder: bool = False,
    grid: tuple[int, int] | None = None,
    norm_groups: int = 1,
) -> Forecaster:
    """The network of a checkpoint, ready for `model(x_BTCHW, teacher_forcing_steps=n)`, which gives all T steps.

    Nothing of the file is run: it is read with `weights_only`, numpy's scalars aside. ConvGRU decodes its last
    hidden state, as the paper's code does.

    Args:
        path: what the paper's training script wrote.
        architecture: convgru, convlstm, minconvgru, minconvlstm or minconvexplstm.
        padding: circular, cylinder or zeros; the run's `model.padding_mode`.
        tanh_encoder: the run's `model.tanh_encoder`.
        grid: height and width, which the weights tell where the norm is a layer norm.
        norm_groups: groups of a group norm.

    Raises:
        UserError: there is no such file, it is not such a checkpoint, or it is one of another architecture or grid.
    """
    state = _read(Path(path))
    parts = {name.split(".")[0] for name in state}
    if not {"encoder", "norms", "decoder"} <= parts or parts.isdisjoint({"clstm", "cgru"}):
        raise UserError(
            f"'{path}' is not a checkpoint of the paper's models: its weights are {', '.join(sorted(parts))}"
        )
    weights = {_renamed(name): value for name, value in state.items()}
    norm = weights["norms.0.weight"]
    if norm.ndim == 2:
        if grid is not None and tuple(norm.shape) != tuple(grid):
            raise UserError(f"'{path}' is of a grid of {norm.shape[0]} x {norm.shape[1]}, not {grid[0]} x {grid[1]}")
        grid = (norm.shape[0], norm.shape[1])
    if grid is None:
        raise UserError(f"'{path}' has a group norm and does not tell its grid: give height and width")
    convolutions = {name: w for name, w in weights.items() if re.fullmatch(r"cells\.\d+\.conv(_a)?\.weight", name)}
    inputs = 1 if architecture.startswith("min") else 2
    widths = [weight.shape[1] // inputs for weight in convolutions.values()]
    model = Forecaster(
        architecture,
        hidden_size=widths,
        channels=weights["decoder.weight"].shape[0],
        height=grid[0],
        width=grid[1],
        padding=padding,
        decode="hidden" if architecture == "convgru" else "residual",
        norm="layer" if norm.ndim == 2 else "group",
        norm_groups=norm_groups,
        tanh_encoder=tanh_encoder,
    )
    for name, value in model.state_dict().items():
        if name.endswith(".bias") and name.removesuffix("bias") + "weight" in weights:
            weights.setdefault(name, torch.zeros_like(value))  # a run with model.bias off
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(
            f"'{path}' is not a checkpoint of {architecture}: it looks like one of {' or '.join(_alike(state))}"
        ) from None
    return model.eval()


def _alike(state: dict[str, torch.Tensor]) -> list[str]:
    """Architectures that have weights of these names and shapes."""
    name, weight = next((n, w) for n, w in state.items() if re.match(r"c(gru|lstm)\.0\.conv(_a)?\.\d\.weight", n))
    if ".conv_a." in name:
        return ["convgru"]
    if weight.shape[0] == 3 * weight.shape[1]:
        return ["minconvlstm", "minconvexplstm"]
    return ["minconvgru"] if name.startswith("cgru") else ["convlstm"]


def _renamed(name: str) -> str:
    """Our name of a weight: `clstm.0.conv.1.weight` is `cells.0.conv.weight`, the 1 coming from cylinder padding."""
    return re.sub(r"^c(?:gru|lstm)\.(\d+)\.(conv\w*)\.\d+\.", r"cells.\1.\2.", name)


@contextmanager
def _numpy_scalars_allowed() -> Iterator[None]:
    """The best error is saved as a scalar of numpy, whose reconstruction torch does not allow by itself."""
    import numpy as np
    from numpy._core import multiarray

    of_numpy: list[Any] = [np.dtype, np.ndarray, *(type(np.dtype(t)) for t in (np.float32, np.float64))]
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        of_numpy += [(multiarray._reconstruct, f"{module}._reconstruct"), (multiarray.scalar, f"{module}.scalar")]
    with torch.serialization.safe_globals(of_numpy):
        yield


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The weights by the name that the paper's code gives them."""
    try:
        with _numpy_scalars_allowed():
            content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["model_state_dict"]
        # compiled models carry a prefix
        return {name.removeprefix("_orig_mod."): value for name, value in state.items()}
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint '{path}'") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None
    except Exception as error:
        # torch raises errors of many kinds for what is no checkpoint, and pickle's for what it would have to run
        reason = re.sub(r"\s+", " ", str(error).split("\n")[0])
        raise UserError(
            f"'{path}' is not a checkpoint of the paper's code ({type(error).__name__}: {reason})"
        ) from None
