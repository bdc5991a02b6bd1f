"""The logarithm log(1 + x / scale) as which stores may hold a variable, and its inverse.

Conversion takes it of what it stores, and forecasts take it of a user's file, so that both have the same numbers.
"""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-6
"""Negative values down to this part of the scale are taken: packed zeros may be rounded to them, and their logarithm is
finite."""


def is_negative(values: np.ndarray, scale: float) -> np.ndarray:
    """Return where values are negative by more than rounding, so that no logarithm of them is taken."""
    return np.less(values, -ROUNDING * scale)


def take_logarithm(values: np.ndarray, scale: float) -> np.ndarray:
    """Return log(1 + x / scale), computed in float64.

    Args:
        values: x, float32.
        scale: the scale, in the units of x.

    Returns:
        float32 of the same shape.
    """
    return np.log1p(values.astype(np.float64) / scale).astype(np.float32)


def invert_logarithm(values: np.ndarray, scale: float) -> np.ndarray:
    """Return x of log(1 + x / scale), computed in float64; 0 where the logarithm is below that of 0.

    Args:
        values: the logarithms, float32.
        scale: the scale, in the units of x.

    Returns:
        float32 of the same shape, NaN where the logarithm is.
    """
    with np.errstate(over="ignore"):  # a number beyond the range of float32 becomes infinite
        return np.maximum(np.expm1(values.astype(np.float64)) * scale, 0).astype(np.float32)
