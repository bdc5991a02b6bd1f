"""Regions whose errors are reported beside those of the whole grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mcrnn.data.region import Region
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.evaluation.measures import RegionPoints


def named_regions(texts: Sequence[str]) -> dict[str, Region]:
    """Read regions as `--region` of `mcrnn.evaluate` takes them.

    Args:
        texts: `NAME=N/W/S/E` of each.

    Raises:
        UserError: a text is no region with a name, or two have the same name.
    """
    found: dict[str, Region] = {}
    for text in texts:
        name, _, edges = text.rpartition("=")
        name = name.strip()
        if not name:
            raise UserError(f"--region is NAME=NORTH/WEST/SOUTH/EAST, such as europe=75/-15/30/42.5, not '{text}'")
        if name in found:
            raise UserError(f"--region {name} is there twice")
        found[name] = Region.parse(edges, "--region")
    return found


def region_points(store: FieldStore, coarsen: int, regions: Mapping[str, Region]) -> dict[str, RegionPoints]:
    """Return the grid points of regions, of which each stands for the whole area of its cell.

    Args:
        store: the field store.
        coarsen: side of the blocks of grid points that are averaged; the centre of a block decides.
        regions: the regions by name.

    Raises:
        UserError: the grid has no latitudes and longitudes, or a region has no grid point.
    """
    if not regions:
        return {}
    latitude, longitude = store.latitude, store.longitude
    if latitude is None or longitude is None:
        raise UserError(f"--region needs latitudes and longitudes, which the grid of '{store.name}' has not")
    store.grid(coarsen)  # refuses blocks that do not divide the grid
    rows = latitude.reshape(-1, coarsen).mean(1)
    columns = np.unwrap(longitude, period=360).reshape(-1, coarsen).mean(1)
    weights = latitude_weights(rows)
    found = {}
    for name, region in regions.items():
        inside, (across, _) = region.select_rows(rows), region.select_columns(columns)
        if not len(inside) or not len(across):
            raise UserError(f"--region {region} holds no grid point of '{store.name}'")
        found[name] = RegionPoints(inside, across, weights[inside] / weights[inside].mean())
    return found
