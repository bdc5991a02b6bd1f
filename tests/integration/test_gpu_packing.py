"""`search.gpus: auto`: trials share a GPU as some of them were measured to need it.

The GPU is there for Ray only, so the measurement is given.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from mcrnn.config.sections import Configuration
from mcrnn.data.splits import FieldData
from mcrnn.errors import UserError
from mcrnn.runners.cluster_size import cluster_size
from mcrnn.runners.gpu_cards import Card
from mcrnn.search.driver import run
from mcrnn.search.gpu_sharing import share_gpus
from mcrnn.search.packing import TrialMeasurement
from mcrnn.search.trial_measurement import Measure, Measured
from mcrnn.tracking.run_folder import RunEnd
from mcrnn.training.session import End
from tests.integration.test_search_resources import Watch, opened, ray_of_two  # noqa: F401  a fixture
from tests.support.mps_control import install
from tests.support.processes import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.usefixtures("database")]

AUTO = {"trials": 4, "scheduler": "none", "gpus": "auto"}
SHORT = {"epochs": 1, "batch_size": 4, "teacher_forcing_steps": 4}


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for NVIDIA's multi-process service; returns its folder."""
    folder = tmp_path_factory.mktemp("mps")
    for name, value in install(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(folder))  # where our daemon has its folder
    return folder


def half_of_a_gpu(configs: list[Configuration], data: FieldData) -> Measured:
    """What half of a GPU of 10 GB is enough for."""
    assert {each.model.architecture for each in configs} == {"convgru", "minconvgru", "minconvexplstm"}
    assert data.train.shape == (6, 14, 1, 8, 8)
    trials = tuple(TrialMeasurement(4e9, 0.2, 0.1e9, 0.9) for _ in configs)
    return Measured(Card("GPU", 10e9, 0.5e9), trials)


def too_large(configs: list[Configuration], data: FieldData) -> Measured:
    return Measured(Card("GPU", 10e9, 0.5e9), ())


def endless(configs: list[Configuration], data: FieldData) -> Measured:
    time.sleep(600)
    raise AssertionError


def on_no_gpu(configs: list[Configuration], data: FieldData) -> Measured:
    raise UserError("PyTorch finds no GPU")


def test_trials_share_a_gpu_as_measured_and_one_that_was_too_large_beside_another_has_it_alone(
    root: Path,
    service: Path,
    ray_of_two: Any,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    with opened(root, train=SHORT, search=AUTO) as search, Watch(ray_of_two) as watch:
        search.folder.trial(0).write_end(RunEnd(End.OUT_OF_MEMORY, "out of memory on cuda:0"))
        run(search, measure=half_of_a_gpu)
    captured = capfd.readouterr()
    first, line = (line for line in captured.out.splitlines() if line.startswith("search.gpus auto"))
    assert first.endswith("where that was not done before")
    assert line == (
        "search.gpus auto: 2 trials on a GPU (0.5 GPU and 1 CPU each, under NVIDIA's multi-process service): its "
        "memory has room for no more, with 10% left free. Measured: a trial takes 4 of 9.5 GB, keeps the GPU busy for "
        "20% of the time and 0.9 cores of the machine, and takes 0.1 GB of its memory"
    )
    assert [trial.user_attrs["end"] for trial in search.study.get_trials()] == ["finished"] * 4
    started = [search.folder.trial(number).read_record()["time"] for number in range(4)]  # type: ignore[index]
    assert started[0] == max(started)  # alone, after the others
    assert "trial 0 ran out of memory beside others" in captured.err
    assert {round(gpus, 2) for _, _, gpus, _ in watch.seen} >= {0, 0.5}
    # the service ran for the trials, and ends with the last of them
    calls = (service / "calls").read_text().splitlines()
    assert any(call.startswith("-d") for call in calls)
    ray_of_two.shutdown()
    wait_for(lambda: not list(service.glob("mcrnn-mps-*/pipe/daemon")), seconds=60)


@pytest.mark.usefixtures("service")
def test_search_that_goes_on_decides_the_same_without_measuring_again(
    root: Path,
    ray_of_two: Any,  # noqa: F811
) -> None:
    def decided(measure: Measure, **changes: Any) -> str:
        with opened(root, search=AUTO | changes) as search:
            data = ray_of_two.put(FieldData.load(search.store, search.first_configuration.data))
            return share_gpus(search, cluster_size(), data, measure, lambda: None)[1]

    alone = "search.gpus auto: 1 trial on a GPU: "
    assert decided(on_no_gpu) == alone + "nothing could be measured (PyTorch finds no GPU)"
    assert decided(too_large) == alone + "the memory of a GPU was not enough for those that were measured"
    first = decided(half_of_a_gpu)
    assert first.startswith("search.gpus auto: 2 trials on a GPU (0.5 GPU and 1 CPU each, under NVIDIA's multi-process")
    assert decided(on_no_gpu) == first
    assert decided(on_no_gpu, concurrency=1) == alone + "no more than 1 run at a time, and there may be 1 GPU"


@pytest.mark.usefixtures("service")
def test_measurement_ends_when_a_stop_is_asked_for(
    root: Path,
    ray_of_two: Any,  # noqa: F811
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with opened(root, search=AUTO) as search, pytest.raises(KeyboardInterrupt):
        share_gpus(search, cluster_size(), ray_of_two.put(None), endless, stop)
    wait_for(lambda: ray_of_two.available_resources().get("GPU") == 1, seconds=60)
