"""Train one configuration.

    python -m mcrnn.train my_configuration.yaml
    python -m mcrnn.train search_spaces/paper/ns_s25_tf20.yaml --set model.architecture=minconvexplstm

With `train.workers` above 1 it runs data-parallel on Ray Train, else in this process.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mcrnn.cli import SetOption, StorageOption, main
from mcrnn.config_file import load_configuration
from mcrnn.storage import Storage


def train(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Configuration, or a space that the settings leave one value of each."),
    ],
    settings: SetOption = None,
    new: Annotated[bool, typer.Option("--new", help="Start a new run beside one of the same name.")] = False,
    storage: StorageOption = None,
) -> None:
    """Train one configuration; its model is kept in runs/NAME/model and its metrics in MLflow.

    The same command again continues an unfinished run from its last checkpoint, after anything. SIGTERM and Ctrl-C
    write a checkpoint first.
    """
    config = load_configuration(file, settings or ())
    root = Storage.open(storage)

    from mcrnn import single

    single.run(config, root, new=new)


if __name__ == "__main__":
    main(train)
