"""Judge models on the test split, beside persistence and climatology.

    python -m mcrnn.evaluate models:/mcrnn-demo@champion

Writes metrics.json and two pictures a model under reports/, and adds them to the model's MLflow run.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.storage import Storage


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Registry URIs (models:/NAME@champion), run URIs (runs:/ID/model) or folders.",
        ),
    ],
    warm_up: Annotated[
        int | None, typer.Option(min=1, help="Frames given; by default those of the model's validation.")
    ] = None,
    horizon: Annotated[
        int | None, typer.Option(min=1, help="Closed-loop steps; by default those of the model's validation.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the report goes; by default below reports/.")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Judge models on the test split of the store that they were trained on."""
    root = Storage.open(storage)

    from mcrnn import report

    report.make(models, root, warm_up=warm_up, horizon=horizon, out=out)


if __name__ == "__main__":
    main(evaluate)
