"""Find the mask of a field in its first frame, and check that the same points are missing at all times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.gridded_field import GriddedField
from data_prep.logarithms import check_signs, take_logarithms
from mcrnn.errors import UserError


@dataclass(frozen=True)
class FieldMask:
    """The mask of a field on the grid of its sources. `find_mask` makes one.

    Attributes:
        mask_CHW: the points that have values.
        outside: what is stored at the others, for each channel, float32: the mean of the first frame. The mean of the
            training split is not known before all of it is read.
        first: position in the field of the first frame.
    """

    mask_CHW: np.ndarray
    outside: np.ndarray
    first: int

    def check(self, field: GriddedField, values_NTCHW: np.ndarray, start: int) -> None:
        """Refuse values that are missing at some times only.

        Args:
            field: the field.
            values_NTCHW: values, NaN where they are missing, the first of which are at position `start` of the field.
            start: that position.

        Raises:
            UserError: there are such values; the message names the first.
        """
        changed = np.isfinite(values_NTCHW) != self.mask_CHW
        if not changed.any():
            return
        sample, time, channel, row, column = (int(index[0]) for index in np.nonzero(changed))
        at = (sample, time + start) if field.samples is None else (sample + start, time)
        is_within = self.mask_CHW[channel, row, column]
        contrast = "is missing, but has a value" if is_within else "has a value, but has none"
        raise UserError(
            f"{field.describe_position(*at, channel, row, column)} {contrast} {_first_time(field, self.first)}; "
            "with --mask a point is missing at all times or at none: repair it, or say by --fill, in place of --mask, "
            "what to put where values are missing"
        )

    def on_grid_of(self, field: GriddedField) -> np.ndarray:
        """Return the mask on the grid of the store: a coarse cell has a value where a part of its area has one."""
        return self.mask_CHW if field.remapping is None else field.remapping.coverage(self.mask_CHW) > 0

    def describe(self, field: GriddedField) -> str:
        """Return in words how much of the grid of the sources has no value."""
        shares = {
            channel.name: 1 - mask_HW.mean() for channel, mask_HW in zip(field.channels, self.mask_CHW, strict=True)
        }
        listed = [f"{name} has no value at {100 * share:.3g} %" for name, share in shares.items() if share]
        return f"{', '.join(listed)} of the points, which are left out" if listed else "no point is missing"


def find_mask(field: GriddedField, first: int) -> FieldMask:
    """Read the first frame, and return the mask of the points that are missing in it.

    Args:
        field: the field.
        first: position of the first frame, or sample, that is converted.

    Raises:
        UserError: a channel has no value at all, or one becomes a logarithm and has negative values.
    """
    frame_NTCHW = field.read(first, first + 1)
    check_signs(field, frame_NTCHW, first)  # before the logarithm of their mean is taken
    frame_CHW = frame_NTCHW[0, 0]
    mask_CHW = np.isfinite(frame_CHW)
    for channel, mask_HW in zip(field.channels, mask_CHW, strict=True):
        if not mask_HW.any():
            raise UserError(f"{channel.name} has no value {_first_time(field, first)}, so that it tells no mask")
    outside = [frame_HW[mask_HW].mean(dtype=np.float64) for frame_HW, mask_HW in zip(frame_CHW, mask_CHW, strict=True)]
    return FieldMask(mask_CHW, take_logarithms(field, np.array(outside, np.float32), 0), first)


def _first_time(field: GriddedField, first: int) -> str:
    return f"in the first frame that is converted, {field.describe_time(first, 0)}"
