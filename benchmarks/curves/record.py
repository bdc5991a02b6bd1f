"""Record the learning curves of random configurations of a search space, each trained to its last epoch.

    python -m benchmarks.curves.record navier-stokes --configurations 300 --folder /data/curves
    python -m benchmarks.curves.record turbulence --configurations 200 --folder /data/curves
    python -m benchmarks.curves.record navier-stokes --schedule trapezoid --configurations 40 --folder /data/curves

The space is that of search_spaces/ns.yaml. The grid is 8 x 8 and an epoch has 48 windows, so that hundreds of trainings
fit into hours of two cores.

navier-stokes: vorticity in the paper's setting, 200 training samples, 16 frames given and 24 forecast.
turbulence: a chaotic series at a third of the viscosity and half of the forcing, written as NetCDF files and converted
from them; 10 frames given and 15 forecast. This table is only for checking: nothing may be chosen by it.

The same command goes on where it was interrupted, trains what the table lacks, and adds it to
benchmarks/curves/NAME.parquet: one row for each configuration, with its values, how it ended, and lists of the
validation error, the test error (both closed-loop RMSE in standard deviations) and the processor seconds of training of
each epoch. The weights are averaged (train.ema), so that errors of early epochs tell something of the last one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from data_prep.convert import convert
from data_prep.navier_stokes import generate
from mcrnn.config.loading import load_search
from mcrnn.config.paths import Values
from mcrnn.config.sections import Configuration
from mcrnn.config.space import Search
from mcrnn.data.description import Scaling
from mcrnn.data.splits import FieldData, Split, open_split
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import evaluation_windows
from mcrnn.models import with_resolved_sizes
from mcrnn.models.forecaster import build_model
from mcrnn.search.sampling import suggest
from mcrnn.storage.local import LocalFolder
from mcrnn.training.session import OBJECTIVE, CallbackSession, State, evaluated_weights
from mcrnn.training.trainer import Trainer
from mcrnn.training.validation import validate

HERE = Path(__file__).parent
SPACE = HERE.parent.parent / "search_spaces/ns.yaml"
FIELDS = {
    "navier-stokes": {"data.coarsen": 8, "validation.warm_up": 16, "validation.horizon": 24},
    "turbulence": {"data.coarsen": 4, "validation.warm_up": 10, "validation.horizon": 15},
}
"""What differs from ns.yaml for each field."""
COMMON = {"data.windows_per_epoch": 48, "validation.windows": 16, "train.ema": 0.9}
TEST_WINDOWS = 16
CURVES = ("validation", "test", "seconds")
"""Columns of a table that have a value for each epoch."""


def make_store(field: str, folder: Path) -> Path:
    """Make the store of a field, where it is not there yet; returns its path."""
    store = folder / f"{field}.zarr"
    if field == "navier-stokes":
        generate(store.name, train=200, val=24, test=48, seed=0, workers=1, storage=str(folder))
        return store
    import xarray as xr

    source = folder / "turbulence-source.zarr"
    spin_up, frames = 100, 2191
    generate(
        source.name, train=1, val=1, test=1, seed=1, frames=spin_up + frames, interval=0.5, resolution=32,
        viscosity=3e-4, forcing=0.05, workers=1, storage=str(folder),
    )  # fmt: skip
    file = folder / "turbulence.nc"
    if not file.exists():
        vorticity = np.asarray(FieldStore.open(LocalFolder(source)).array("train")[0, spin_up:, 0])
        times = np.datetime64("2001-01-01") + np.arange(frames) * np.timedelta64(1, "D")
        sides = np.arange(vorticity.shape[-1], dtype=np.float64)
        array = xr.DataArray(
            np.asarray(vorticity),
            dims=("time", "y", "x"),
            coords={"time": times, "y": sides, "x": sides},
            name="vorticity",
        )
        array.to_dataset().to_netcdf(file)
    convert(
        [str(file)], store.name, train="2001:2003", val="2004:2004", test="2005:2006", boundary="periodic",
        variable=["vorticity"], workers=1, storage=str(folder),
    )  # fmt: skip
    return store


def space_of(field: str, store: Path, schedule: str) -> Search:
    """Return the search whose space the configurations are drawn from."""
    changes = (
        FIELDS[field] | COMMON | {"data.store": str(store), "search.sampler": "random", "train.schedule": schedule}
    )
    return load_search(str(SPACE), [f"{path}={json.dumps(value)}" for path, value in changes.items()])


def draw(search: Search, configurations: int) -> list[Values]:
    """Draw configurations at random, as a search with the sampler `random` does."""
    study = optuna.create_study()
    return [suggest(study.ask(), search) for _ in range(configurations)]


class Recorder(CallbackSession):
    """The session of a training that keeps the errors and the processor time of each epoch."""

    def __init__(self, config: Configuration, data: FieldData, test: Split) -> None:
        super().__init__(self._record)
        self.config, self.data, self.test = config, data, test
        self.validation: list[float] = []
        self.test_errors: list[float] = []
        self.seconds: list[float] = []
        self.started = time.process_time()
        self.scaling = Scaling.of(config.data, *data.field.normalization)

    def advance(self, epoch: int, batch: int, batches: int) -> Any:
        """Take the time of the last step of an epoch: validation is not counted."""
        if batch == batches:
            self.seconds.append(time.process_time() - self.started)
        return super().advance(epoch, batch, batches)

    def _record(self, metrics: dict[str, float], state: State) -> None:
        self.validation.append(metrics[OBJECTIVE])
        self.test_errors.append(self._test_error(state) if not metrics["diverged"] else float("nan"))
        self.started = time.process_time()

    def _test_error(self, state: State) -> float:
        validation, field = self.config.validation, self.data.field
        model = build_model(self.config.model, field.frame_shape, field.padding)
        model.load_state_dict(evaluated_weights(state))
        windows = evaluation_windows(
            self.test.shape, self.data.is_series, validation.warm_up + validation.horizon, TEST_WINDOWS
        )
        error = validate(
            model, self.test, windows, self.scaling, warm_up=validation.warm_up, horizon=validation.horizon,
            batch_size=validation.batch_size,
        )  # fmt: skip
        first = validation.warm_up + 1
        return error.rmse_normalized(first, validation.warm_up + validation.horizon, field.std)


@cache
def _data(store: str, coarsen: int) -> tuple[FieldData, Split]:
    """Load the splits once for all trainings of a process."""
    from mcrnn.config.sections import DataConfig

    config = DataConfig.model_validate({"store": store, "coarsen": coarsen})
    opened = FieldStore.open(LocalFolder(Path(store)))
    return FieldData.load(opened, config), open_split(opened, "test", config)


def train(content: dict[str, Any]) -> dict[str, Any]:
    """Train one configuration to its last epoch, on one thread.

    Returns:
        How it ended, and what was recorded of each epoch.
    """
    torch.set_num_threads(1)
    config = Configuration.model_validate(content)
    data, test = _data(config.data.store, config.data.coarsen)
    config = with_resolved_sizes(config, data.field.frame_shape, len(data.field.inputs))
    recorder = Recorder(config, data, test)
    trainer = Trainer(config, data, recorder, torch.device("cpu"))
    recorder.started = time.process_time()
    end = trainer.run()
    return {
        "end": str(end),
        "validation": recorder.validation,
        "test": recorder.test_errors,
        "seconds": recorder.seconds,
    }


def record(field: str, schedule: str, configurations: int, seeds: int, folder: Path, workers: int) -> None:
    """Train what has not been trained, and write the table."""
    folder.mkdir(parents=True, exist_ok=True)
    search = space_of(field, make_store(field, folder), schedule)
    done = folder / f"{field}-{schedule}"
    done.mkdir(exist_ok=True)
    drawn = draw(search, configurations)
    jobs = [(number, seed) for seed in range(seeds) for number in range(configurations)]
    table = HERE / (f"{field}.parquet" if schedule == "cosine" else f"{field}-{schedule}.parquet")
    recorded = {(row["configuration"], row["seed"]) for row in _rows(table)}
    missing = [job for job in jobs if not _file(done, *job).exists() and job not in recorded]
    print(f"{field}, {schedule}: {len(jobs) - len(missing)} of {len(jobs)} trainings done", flush=True)
    started = time.monotonic()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running = {}
        for number, seed in missing:
            config = search.configuration(drawn[number] | {"train.seed": seed})
            running[pool.submit(train, config.model_dump(exclude_unset=True))] = number, seed
        for count, future in enumerate(as_completed(running), start=1):
            number, seed = running[future]
            row: dict[str, Any] = {"configuration": number, "seed": seed, "values": drawn[number]} | future.result()
            file = _file(done, number, seed)
            file.with_suffix(".partial").write_text(json.dumps(row))
            file.with_suffix(".partial").rename(file)
            left = (time.monotonic() - started) / count * (len(missing) - count)
            print(
                f"[{count}/{len(missing)}] {number}.{seed} {row['end']}, {sum(row['seconds']):.0f} s, "
                f"error {min(row['validation'], default=float('nan')):.3f}, {left / 60:.0f} min left",
                flush=True,
            )
    write_table(done, table)


def _file(folder: Path, number: int, seed: int) -> Path:
    return folder / f"{number:04d}-{seed}.json"


def _rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a table; none where it has not been written yet."""
    return parquet.read_table(file).to_pylist() if file.exists() else []


def write_table(folder: Path, file: Path) -> None:
    """Add the recorded trainings of a folder to a table."""
    rows = {(row["configuration"], row["seed"]): row for row in _rows(file)}
    for each in folder.glob("*.json"):
        row = json.loads(each.read_text())
        rows[row["configuration"], row["seed"]] = row | row.pop("values")
    ordered = [rows[key] for key in sorted(rows)]
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k not in CURVES} for row in ordered])
    for name in CURVES:
        table = table.append_column(name, pa.array([row[name] for row in ordered], pa.list_(pa.float32())))
    parquet.write_table(table, file, compression="zstd")
    print(f"{file.name}: {len(rows)} trainings, {file.stat().st_size / 1e3:.0f} kB", flush=True)


def main() -> None:
    """Record one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("field", choices=FIELDS)
    parser.add_argument("--configurations", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each configuration")
    parser.add_argument("--schedule", default="cosine", help="schedule of the learning rate")
    parser.add_argument("--folder", type=Path, required=True, help="where the stores and the finished trainings are")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    options = parser.parse_args()
    record(
        options.field,
        options.schedule,
        options.configurations,
        options.seeds,
        options.folder.absolute(),
        options.workers,
    )


if __name__ == "__main__":
    main()
