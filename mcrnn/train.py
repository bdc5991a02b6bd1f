"""Train one configuration.

    python -m mcrnn.train my_configuration.yaml

With `train.workers` above 1 it runs data-parallel on Ray Train, else in this process.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.config import load_configuration
from mcrnn.storage import Storage


def train(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Configuration without a space.")],
    new: Annotated[bool, typer.Option("--new", help="Start a new run beside one of the same name.")] = False,
    storage: StorageOption = None,
) -> None:
    """Train one configuration; its model is kept in runs/NAME/model and its metrics in MLflow.

    The same command again continues an unfinished run from its last epoch.
    """
    config = load_configuration(file)
    root = Storage.open(storage)

    from mcrnn import single

    single.run(config, root, new=new)


if __name__ == "__main__":
    main(train)
