"""Evaluate models on the test split, beside persistence and climatology.

    python -m mcrnn.evaluate models:/mcrnn-demo@champion
    python -m mcrnn.evaluate models:/mcrnn-ns@champion+models:/mcrnn-ns@previous   # the ensemble of both
    python -m mcrnn.evaluate 'runs/*convlstm*' models:/mcrnn-ns@champion --warm-up 20 --horizon 30 --out report
    python -m mcrnn.evaluate models:/mcrnn-z@champion --region europe=75/-15/30/42.5 --region tropics=20/-180/-20/180
    python -m mcrnn.evaluate models:/mcrnn-z@champion --workers 8     # for a large test split

Writes a report below reports/: tables, figures, an animation, forecasts as Zarr, and report.html, which shows all of
them. A run of the experiment mcrnn-evaluations in MLflow has the same report among its artifacts.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mcrnn.cli import DeviceOption, HorizonOption, StorageOption, WarmUpOption, WorkersOption, main, report_failures
from mcrnn.storage.root import Storage


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Registry URIs (models:/NAME@champion), run URIs (runs:/ID/model) or folders; wildcards in quotes. "
            "MODEL+MODEL is the ensemble of several.",
        ),
    ],
    store: Annotated[
        str | None, typer.Option(metavar="STORE", help="Field store to evaluate on; by default that of the training.")
    ] = None,
    warm_up: WarmUpOption = None,
    horizon: HorizonOption = None,
    starts: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Where windows of a series start: all, 'every N' frames, apart (no overlap), or biweekly (forecasts "
            "from Mondays and Thursdays). By default biweekly where frames have dates, else apart.",
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N/W/S/E",
            help="Also report the errors in a region, in degrees: europe=75/-15/30/42.5. Repeatable.",
        ),
    ] = None,
    other_data: Annotated[
        bool,
        typer.Option(
            "--other-data", help="Allow another store, units or grid than in training; the report names them."
        ),
    ] = False,
    save_forecasts: Annotated[
        str, typer.Option(metavar="N|all", help="Number of windows whose forecasts are kept in forecasts.zarr.")
    ] = "16",
    device: DeviceOption = None,
    workers: WorkersOption = 1,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the report goes; by default below reports/.")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Evaluate models of any size and architecture on the same windows of the test split, and write a report.

    Models that differ in their seed only share a row with mean and standard deviation. Scores are kept, so that the
    same evaluation is quick the next time, and goes on where it was after an interruption. Models that cannot be
    evaluated are named at the end (exit code 2); the others are reported.
    """
    root = Storage.open(storage)

    from mcrnn.evaluation.regions import named_regions
    from mcrnn.evaluation.side_by_side import Windows
    from mcrnn.reports import evaluation_report

    windows = Windows(store, warm_up, horizon, starts, other_data, device, named_regions(region or ()))
    report_failures(
        evaluation_report.make(models, root, windows, save_forecasts=save_forecasts, out=out, workers=workers)
    )


if __name__ == "__main__":
    main(evaluate)
