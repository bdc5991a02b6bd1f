"""Values of sources that stand for missing ones, beyond those that xarray knows.

xarray applies `scale_factor`, `add_offset`, `_FillValue` and `missing_value`. The CF conventions (section 2.5.1) also
have `valid_min`, `valid_max` and `valid_range`, and a NetCDF variable that was never written has the fill value of its
type without saying so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr


def without_invalid(
    variable: xr.Variable, values: np.ndarray, *, is_netcdf: bool, dtype: type[np.floating] = np.float32
) -> np.ndarray:
    """Return values as floating-point numbers, NaN where they are missing.

    Args:
        variable: the variable, for its attributes.
        values: its values as xarray returns them.
        is_netcdf: whether they are from a NetCDF file.
        dtype: type of the result.
    """
    encoding = variable.encoding
    is_packed = "scale_factor" in encoding or "add_offset" in encoding
    scale, offset = float(encoding.get("scale_factor", 1.0)), float(encoding.get("add_offset", 0.0))
    rounding = abs(scale) / 2 if is_packed else 0.0  # the numbers that CF compares are the packed ones
    invalid = np.zeros((), bool)
    ends = [end if end is None else end * scale + offset for end in _valid_range(variable.attrs)]
    low, high = ends if scale > 0 else ends[::-1]
    if low is not None:
        invalid = invalid | (values < low - rounding)
    if high is not None:
        invalid = invalid | (values > high + rounding)
    if is_netcdf and (unwritten := _unwritten(variable)) is not None:
        fill = values.dtype.type(unwritten * scale + offset)
        invalid = invalid | (np.abs(values - fill) <= rounding if is_packed else values == fill)
    with np.errstate(over="ignore"):  # a number beyond the range of float32 becomes infinite, and is refused as such
        result = values.astype(dtype, copy=False)
    return np.where(invalid, dtype(np.nan), result) if invalid.any() else result


def _valid_range(attributes: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return the smallest and the largest valid number, as packed; None where there is none."""
    low, high = attributes.get("valid_min"), attributes.get("valid_max")
    both = np.ravel(attributes.get("valid_range", []))
    if len(both) == 2:
        low, high = both
    try:
        return None if low is None else float(low), None if high is None else float(high)
    except (TypeError, ValueError):
        return None, None


def _unwritten(variable: xr.Variable) -> float | None:
    """Return the number, as packed, of what was never written; None where the variable has a fill value of its own."""
    import netCDF4

    if "_FillValue" in variable.encoding or "missing_value" in variable.encoding:
        return None
    dtype = np.dtype(variable.encoding.get("dtype") or variable.dtype)
    fill = netCDF4.default_fillvals.get(dtype.str[1:]) if dtype.itemsize > 1 else None
    return None if fill is None else float(fill)
