"""Forecast from a file or store of your own.

    python -m mcrnn.forecast models:/mcrnn-ns@champion recent.nc --steps 40 --out forecast.nc
    python -m mcrnn.forecast models:/mcrnn-z500@champion data/z500.zarr --from 2018-03-01 --from 2018-06-01 --out f.zarr

The result has the variables, coordinates and calendar of the input, so that it opens beside it, in the units of the
model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcrnn.cli import DeviceOption, StorageOption, main
from mcrnn.storage.root import Storage

if TYPE_CHECKING:
    import numpy as np

    from mcrnn.forecasting.frames import GivenFrames
    from mcrnn.models.trained_model import TrainedModel


def forecast(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Registry URI (models:/NAME@champion), run URI (runs:/ID/model) or a folder."
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="What is continued: a NetCDF file, a field store or another Zarr group; local or s3://.",
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="FILE", help="What is written, local or s3://: NetCDF (.nc) or Zarr (.zarr).")
    ],
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Number of frames to forecast; by default as many as the model was validated on."),
    ] = None,
    starts: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="TIME",
            help="Time of the last given frame, such as 2018-03-01T06:00, or 'all', or 'every N' frames. Repeatable; "
            "by default the newest frame.",
        ),
    ] = None,
    warm_up: Annotated[
        int | None, typer.Option(min=1, help="Number of given frames; by default as in the model's validation.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a field store: train, val or test.")] = "test",
    group: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Group of a NetCDF file or Zarr group that the variables are in, such as obs; by default that of the "
            "model's data, or none.",
        ),
    ] = None,
    animate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write an animation of the first forecast, as .mp4 or .gif."),
    ] = None,
    device: DeviceOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")] = False,
    storage: StorageOption = None,
) -> None:
    """Continue frames of your own with a trained model, and write the forecasts as NetCDF or Zarr.

    The frames before each start warm the model up; it then runs on its own output. Values in other units are converted
    to the model's, and the logarithm of a variable is taken where the model was trained on it. Another grid, units that
    do not convert, another interval between frames, missing values or too few frames are refused. All samples and all
    starts are computed in batches.
    """
    root = Storage.open(storage)

    from mcrnn.forecasting.output import Output

    output = Output(out)
    output.check(overwrite=overwrite)
    if animate is not None:
        from mcrnn.reports.animation import check_animation

        check_animation(animate)

    from mcrnn.console import Bar
    from mcrnn.device import choose_device
    from mcrnn.forecasting import result
    from mcrnn.forecasting.given import fit
    from mcrnn.forecasting.source import opened
    from mcrnn.forecasting.starts import find_starts
    from mcrnn.tracking import model_loading
    from mcrnn.tracking.provenance import origin

    place = choose_device(device, "--device")
    loaded = model_loading.find(model, root)
    trained = loaded.model
    trained.network.to(place)
    given_count = warm_up or trained.config.validation.warm_up
    lead_count = steps or trained.config.validation.horizon + 1
    with opened(data, root, split, group or "") as source:
        given = fit(source, trained)
        if given.conversions:
            print(given.conversions)
        frames = find_starts(given, starts or [], given_count)
        count = given.samples * len(frames)
        with Bar("forecasting", count, "forecasts") as bar:
            values = result.forecast(
                trained, given, frames, warm_up=given_count, steps=lead_count, on_batch=bar.advance
            )
        labelled = result.label(
            values,
            trained,
            given,
            frames,
            warm_up=given_count,
            identity=loaded.identity(model),
            command=origin()["command"],
        )
        output.write(labelled)
        if animate is not None:
            _animate(animate, trained, given, frames[0], given_count, values[0, 0])
    several = f"{count} forecasts of {lead_count}" if count > 1 else f"a forecast of {lead_count}"
    print(f"{out}: {several} frames after {given_count} given ones")


def _animate(
    target: Path, model: TrainedModel, given: GivenFrames, start: int, warm_up: int, forecast_TCHW: np.ndarray
) -> None:
    """Write the given frames and the first forecast as an animation."""
    import numpy as np

    from mcrnn.data.time_step import show
    from mcrnn.reports.animation import animate_channels

    predicted = model.network.channels_out
    frames_TCHW = np.concatenate([given.read([0], [start], warm_up)[0, :, :predicted], forecast_TCHW])
    if given.is_from_the_north:
        frames_TCHW = frames_TCHW[:, :, ::-1]
    names = model.field.channels[:predicted]
    units = [model.field.expected_units(name) or model.field.units for name in names]
    labels = [name if unit == "1" else f"{name} [{unit}]" for name, unit in zip(names, units, strict=True)]
    reference = given.times[start]
    titles = [f"given: {show(time)}" for time in given.times[start - warm_up + 1 : start + 1]]
    titles += [f"forecast: {show(given.step.after(reference, lead))}" for lead in range(1, len(forecast_TCHW) + 1)]
    animate_channels(target, frames_TCHW, labels, titles, frames_per_second=6)


if __name__ == "__main__":
    main(forecast)
