"""Judge models on the test split, beside persistence and climatology.

    python -m mcrnn.evaluate models:/mcrnn-demo@champion
    python -m mcrnn.evaluate 'runs/*convlstm*' models:/mcrnn-ns@champion --warm-up 20 --horizon 30 --out report

Writes a report below reports/: tables, figures, an animation, forecasts as Zarr, and report.html with all of it. The
same report is among the artifacts of a run of the experiment mcrnn-evaluations in MLflow.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.storage.root import Storage


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Registry URIs (models:/NAME@champion), run URIs (runs:/ID/model) or folders; quoted wildcards too.",
        ),
    ],
    store: Annotated[
        str | None, typer.Option(metavar="STORE", help="Judge on this store; by default that of the training.")
    ] = None,
    warm_up: Annotated[
        int | None, typer.Option(min=1, help="Frames given; by default those of the first model's validation.")
    ] = None,
    horizon: Annotated[
        int | None, typer.Option(min=1, help="Closed-loop steps; by default those of the first model's validation.")
    ] = None,
    starts: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Windows of a series: all, 'every N', apart, or biweekly (from Mondays and Thursdays, the default).",
        ),
    ] = None,
    other_data: Annotated[
        bool,
        typer.Option(
            "--other-data", help="Allow another store, units or grid than the training's; the report says so."
        ),
    ] = False,
    save_forecasts: Annotated[
        str, typer.Option(metavar="N|all", help="Windows whose forecasts are kept in forecasts.zarr.")
    ] = "16",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one.")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the report goes; by default below reports/.")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Judge models of any size and architecture on the same windows of the test split.

    Models that differ in their seed only become one row with mean and deviation. Evaluating again reuses what is there.
    One that cannot be judged is named at the end (exit code 2), and the others are reported.
    """
    root = Storage.open(storage)

    from mcrnn.reports import evaluation_report

    options = evaluation_report.Options(store, warm_up, horizon, starts, other_data, save_forecasts, device, out)
    failures = evaluation_report.make(models, root, options)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        sys.exit(2)


if __name__ == "__main__":
    main(evaluate)
