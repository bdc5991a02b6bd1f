"""How large a network is, without building it."""

from __future__ import annotations


def parameter_count(architecture: str, *, hidden_size: int, layers: int, channels: int, height: int, width: int) -> int:
    """Number of parameters of a `Forecaster` of these sizes (3 x 3 kernels, all with bias).

    Per layer: the cell's convolution, (inputs x 9 + 1) x outputs, and the norm's weight and bias on the grid.
    """
    c = hidden_size
    cell = {
        "convgru": (2 * c * 9 + 1) * 3 * c,
        "convlstm": (2 * c * 9 + 1) * 4 * c,
        "minconvgru": (c * 9 + 1) * 2 * c,
        "minconvlstm": (c * 9 + 1) * 3 * c,
        "minconvexplstm": (c * 9 + 1) * 3 * c,
    }[architecture]
    encoder = (channels + 1) * c
    decoder = (c + 1) * channels
    return encoder + layers * (cell + 2 * height * width) + decoder
