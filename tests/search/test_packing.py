"""How many trials share a GPU follows from what was measured and from what there is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mcrnn.config.search import SearchConfig
from mcrnn.search.packing import MOST_TRIALS, RAY_PARTS, CardLimits, Packing, TrialMeasurement, pack

GB = 1e9


def trial(**changes: Any) -> TrialMeasurement:
    return TrialMeasurement(**({"device_memory": 2 * GB, "busy": 0.1, "host_memory": 2 * GB, "cores": 1.0} | changes))


def card(**changes: Any) -> CardLimits:
    return CardLimits(**({"memory": 80 * GB, "cores": 16, "host_memory": 128 * GB} | changes))


@pytest.mark.parametrize(
    ("trials", "limits", "wanted", "expected", "reason"),
    [
        ([trial()], card(), 48, 10, "time"),
        ([trial(busy=0.3)], card(), 48, 3, "time"),
        ([trial(busy=0.7)], card(), 48, 1, "time"),
        ([trial(busy=0.0)], card(cores=64, host_memory=math.inf, memory=math.inf), 99, 48, "time"),
        ([trial(busy=0.1), trial(busy=0.5)], card(), 48, 3, "time"),  # the mean, 0.3
        ([trial(device_memory=10 * GB)], card(), 48, 7, "its memory"),  # 90 % of 80 GB
        ([trial(), trial(device_memory=10 * GB)], card(), 48, 7, "its memory"),  # the largest
        ([trial(device_memory=79 * GB)], card(), 48, 1, "its memory"),
        ([trial()], card(memory=16 * GB), 48, 7, "its memory"),
        ([trial()], card(cores=4), 48, 4, "CPUs"),
        ([trial(cores=1.2)], card(cores=4), 48, 4, "CPUs"),
        ([trial(cores=2.4)], card(cores=16), 48, 5, "CPUs"),
        ([trial()], card(cores=0.5), 48, 1, "CPUs"),
        ([trial()], card(host_memory=10 * GB), 48, 4, "memory of its machine"),
        ([trial()], card(host_memory=math.inf), 3, 3, "no more trials"),
        ([trial(busy=None)], card(), 48, 1, "how busy"),
        ([trial(busy=None), trial(busy=0.25)], card(), 48, 4, "time"),
    ],
)
def test_trials_of_a_gpu(
    trials: list[TrialMeasurement], limits: CardLimits, wanted: int, expected: int, reason: str
) -> None:
    packing = pack(trials, limits, wanted=wanted, shared=False)
    assert packing.trials == expected
    assert reason in packing.limit


@pytest.mark.parametrize(("shared", "expected"), [(False, 1), (True, 10)])
def test_gpu_of_one_process_is_shared_by_the_service_only(shared: bool, expected: int) -> None:
    assert pack([trial()], card(exclusive=True), wanted=48, shared=shared).trials == expected


def test_parts_of_a_gpu_fill_it_as_ray_counts_them() -> None:
    for trials in range(1, MOST_TRIALS + 1):
        part = round(Packing(trials, "").gpus * RAY_PARTS)
        assert RAY_PARTS // part == trials
        assert math.isclose(part / RAY_PARTS, Packing(trials, "").gpus)


@pytest.mark.parametrize(("cores", "cpus"), [(0.1, 1), (1.2, 1), (1.3, 2), (2.0, 2)])
def test_a_trial_has_the_cpus_that_it_keeps_busy(cores: float, cpus: int) -> None:
    assert pack([trial(cores=cores)], card(), wanted=48, shared=False).cpus == cpus


def test_line_says_what_was_decided_and_why() -> None:
    line = pack([trial(device_memory=10 * GB)], card(), wanted=48, shared=True).describe("time-sliced, because X")
    assert line == (
        "search.gpus auto: 7 trials on a GPU (0.1428 GPU and 1 CPU each, time-sliced, because X): its memory has room "
        "for no more, with 10% left free. Measured: a trial takes 10 of 80 GB, keeps the GPU busy for 10% of the time "
        "and 1 cores of the machine, and takes 2 GB of its memory"
    )
    assert Packing(1, "no card").describe("") == "search.gpus auto: 1 trial on a GPU: no card"


@pytest.mark.parametrize("value", [-0.5, "automatic", "nan"])
def test_other_values_of_gpus_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="gpus"):
        SearchConfig(gpus=value)
    assert SearchConfig(gpus="auto").gpus == "auto"
    assert SearchConfig(gpus=0.25).gpus == 0.25
    assert SearchConfig().gpus is None
