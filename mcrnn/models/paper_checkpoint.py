"""Read checkpoints of the paper's own code, https://github.com/AdaptiveAILab/minconvrnns.

A checkpoint holds weights only; padding, normalisation and variable are in the run's configuration.
`python -m mcrnn.convert` reads both, and writes a model directory, which evaluation and the registry take.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mcrnn.errors import UserError
from mcrnn.models.cells import cell_class
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
    """Build the network of a checkpoint, ready for `model(x_BTCHW, teacher_forcing_steps=n)`.

    No code in the file is run: it is read with `weights_only`, with NumPy's scalars allowed. ConvGRU decodes its last
    hidden state, as the paper's code does.

    Args:
        path: a .ckpt file that the paper's training script wrote.
        architecture: convgru, convlstm, minconvgru, minconvlstm or minconvexplstm.
        padding: circular, cylinder or zeros; the run's `model.padding_mode`.
        tanh_encoder: the run's `model.tanh_encoder`.
        grid: height and width, needed only with a group norm: the weights of a layer norm have the grid's shape.
        norm_groups: number of groups of a group norm.

    Raises:
        UserError: there is no such file, or it is not such a checkpoint, or one of another architecture or grid.
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
    inputs = cell_class(architecture).costs.inputs
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
    """Return the architectures whose weights have these names and shapes."""
    name, weight = next((n, w) for n, w in state.items() if re.match(r"c(gru|lstm)\.0\.conv(_a)?\.\d\.weight", n))
    if ".conv_a." in name:
        return ["convgru"]
    if weight.shape[0] == 3 * weight.shape[1]:
        return ["minconvlstm", "minconvexplstm"]
    return ["minconvgru"] if name.startswith("cgru") else ["convlstm"]


def _renamed(name: str) -> str:
    """Return our name of a weight: `cells.0.conv.weight` for `clstm.0.conv.1.weight`.

    The number after `conv` is the convolution's index in the paper's module: 1 where the padding of a cylinder stands
    before it.
    """
    return re.sub(r"^c(?:gru|lstm)\.(\d+)\.(conv\w*)\.\d+\.", r"cells.\1.\2.", name)


@contextmanager
def _numpy_scalars_allowed() -> Iterator[None]:
    """Let torch read the scalars of NumPy: the best error is saved as one, which `weights_only` alone refuses."""
    import numpy as np
    from numpy._core import multiarray

    numpy_types: list[Any] = [np.dtype, np.ndarray, *(type(np.dtype(t)) for t in (np.float32, np.float64))]
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        numpy_types += [(multiarray._reconstruct, f"{module}._reconstruct"), (multiarray.scalar, f"{module}.scalar")]
    with torch.serialization.safe_globals(numpy_types):
        yield


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights by the names that the paper's code gives them."""
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
        # torch raises errors of many kinds for files that are no checkpoints, and pickle's own for files with code
        reason = re.sub(r"\s+", " ", str(error).split("\n")[0])
        raise UserError(
            f"'{path}' is not a checkpoint of the paper's code ({type(error).__name__}: {reason})"
        ) from None
