"""Areas of the cells of a grid on the sphere, by which means over latitudes are weighted."""

from __future__ import annotations

import numpy as np


def latitude_edges(latitude: np.ndarray) -> np.ndarray:
    """Return the edges of the cells of rows of latitudes.

    The edge between two rows lies in the middle between them. The first and the last row reach half a row further, or
    to the pole where there is no room for another row.

    Args:
        latitude: latitudes of at least two rows in degrees, rising or falling.

    Returns:
        Edges in radians, in the order of the rows, one more than there are rows.
    """
    rows = np.deg2rad(np.asarray(latitude, dtype=np.float64))
    between = (rows[1:] + rows[:-1]) / 2
    beyond = np.array([2 * rows[0] - rows[1], 2 * rows[-1] - rows[-2]])  # where another row would be
    ends = np.where(np.abs(beyond) < np.pi / 2 - 1e-6, (beyond + rows[[0, -1]]) / 2, np.sign(beyond) * np.pi / 2)
    return np.concatenate([ends[:1], between, ends[1:]])


def latitude_weights(latitude: np.ndarray) -> np.ndarray:
    """Return weights proportional to the area on the sphere of the cells of each row.

    The area between two latitudes is proportional to the difference of their sines, so that the weights are exact.

    Args:
        latitude: latitudes of the rows in degrees, rising or falling.

    Returns:
        A weight for each row, float64, with mean 1.
    """
    if len(latitude) == 1:
        return np.ones(1)
    area = np.abs(np.diff(np.sin(latitude_edges(latitude))))
    return area / area.mean()
