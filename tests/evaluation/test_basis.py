"""What a comparison rests on: region, channels and lead times, as they are asked for, computed and recorded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mcrnn.config.sections import DataConfig, ValidationConfig
from mcrnn.data.region import Region
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.evaluation.basis import WHOLE, Basis, quantity
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.measures import Measures, RegionPoints
from mcrnn.evaluation.regions import named_regions, region_points
from tests.evaluation.test_metrics import LATITUDE, random_fields, scored

STD = np.array([2.0, 0.5])
GIVEN = 1
"""position of lead time 1, of two given frames"""


def test_errors_of_windows_are_those_of_plain_numpy() -> None:
    prediction, truth, mean = random_fields(4)
    weights = latitude_weights(LATITUDE)
    rows, columns = np.array([3, 4, 5]), np.array([30, 31, 0, 1])
    basis = Basis.parse("-20/-20/-60/20", ["b"], "2-3")
    measures = Measures(weights, regions={str(basis.region): RegionPoints(rows, columns, weights[rows])})
    scores = scored(prediction, truth, measures, mean)
    normalized = ((prediction - truth) / STD[:, None, None]) ** 2 * weights[:, None]
    whole_N = normalized[:, GIVEN + 1 :].mean((1, 2, 3, 4))
    assert np.allclose(WHOLE.error_by_window(scores, GIVEN, [0, 1], STD), whole_N, rtol=1e-10)
    chosen = basis.channel_indices(["a", "b"])
    assert chosen == [1]
    inside_N = normalized[:, GIVEN + 1 : GIVEN + 3, 1][:, :, rows][..., columns].mean((1, 2, 3))
    assert np.allclose(basis.error_by_window(scores, GIVEN, chosen, STD[chosen]), inside_N, rtol=1e-10)
    prediction[0, 2] = np.nan
    assert WHOLE.error_by_window(scored(prediction, truth, Measures()), GIVEN, [0, 1], STD)[0] == 4
    assert str(basis) == ", of b, in -20/-20/-60/20, lead times 2-3"
    weighting = ValidationConfig(channel_weights={"b": 2})
    words = "RMSE over the standard deviation, weighted by area"
    assert quantity(scores, basis, ValidationConfig()) == f"{words}{basis}"
    assert quantity(scores, basis, weighting) == f"{words}, channels weighted b 2{basis}"
    scales = np.array(weighting.error_scales(["a", "b"], STD))
    weighted_N = np.average(normalized[:, GIVEN + 1 :].mean((1, 3, 4)), axis=1, weights=[1, 2])
    assert np.allclose(WHOLE.error_by_window(scores, GIVEN, [0, 1], scales), weighted_N, rtol=1e-10)
    assert basis.recorded == {"region": "-20/-20/-60/20", "channels": ["b"], "lead_times": "2-3"}
    assert Basis.parse(None, ["b", "a"], None) == Basis.parse(None, ["a", "b", "a"], None)
    assert WHOLE.recorded == {}  # so that comparisons that are recorded already keep their numbers


def test_regions_are_between_their_edges_also_across_the_date_line() -> None:
    across = Region.parse("10/170/-10/-170", "--region")
    for longitude in (np.arange(0, 360, 5.0), np.arange(-180, 180, 5.0)):
        columns, beyond_west = across.select_columns(longitude)
        assert (longitude[columns] % 360).tolist() == [170, 175, 180, 185, 190]
        assert np.allclose(beyond_west, [0, 5, 10, 15, 20])
    assert across.select_rows(np.array([15.0, 10.0, 0.0, -10.0, -15.0])).tolist() == [1, 2, 3]
    named = named_regions(["north=90/-180/20/180", "x=y=10/0/0/5"])
    assert list(named) == ["north", "x=y"]
    assert len(named["north"].select_columns(np.arange(0, 361, 30.0))[0]) == 12


def test_regions_need_grid_points_with_latitudes_and_longitudes(store: FieldStore) -> None:
    regions = named_regions(["a=20/170/-20/-170"])
    with pytest.raises(UserError, match="--region needs latitudes and longitudes, which the grid of"):
        EvaluationSet.of(store, DataConfig(store="x"), warm_up=4, horizon=5, regions=regions)
    globe: Any = SimpleNamespace(name="g", latitude=LATITUDE, longitude=np.arange(2.5, 360, 5), grid=lambda _: None)
    points = region_points(globe, 2, regions)["a"]  # centres of blocks: +-11.25, ..; 5, 15, ..
    assert points.rows.tolist() == [3, 4]
    assert points.columns.tolist() == [17, 18]
    with pytest.raises(UserError, match="--region 3/0/2/9 holds no grid point of 'g'"):
        region_points(globe, 2, named_regions(["a=3/0/2/9"]))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: named_regions(["10/0/0/5"]), "--region is NAME=NORTH/WEST/SOUTH/EAST"),
        (lambda: named_regions(["a=10/0/0/5", "a=20/0/0/5"]), "--region a is there twice"),
        (lambda: Basis.parse("10/0/0", [], None), "--region is NORTH/WEST/SOUTH/EAST"),
        (lambda: Basis.parse("0/0/10/5", [], None), "north is above south"),
        (lambda: Basis.parse(None, [], "5-2"), "--lead-times is FIRST-LAST"),
        (lambda: Basis.parse(None, [], "2-9").check_lead_times(7), "beyond the last lead time, which is 8"),
        (lambda: Basis.parse(None, ["t"], None).channel_indices(["z", "q"]), "--channel t is no predicted channel"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(ask: object, message: str) -> None:
    assert callable(ask)
    with pytest.raises(UserError, match=message):
        ask()
