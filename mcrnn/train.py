"""Train one configuration.

    python -m mcrnn.train my_configuration.yaml
    python -m mcrnn.train --from-run 3f9c...                       # repeats a run that MLflow has recorded
    python -m mcrnn.train search_spaces/paper/ns_s25_tf20.yaml --set model.architecture=minconvexplstm

With `train.workers` above 1 it trains data-parallel on Ray Train, else in this process.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from mcrnn.cli import SetOption, StorageOption, main
from mcrnn.config.loading import load_configuration
from mcrnn.config.sections import Configuration
from mcrnn.errors import UserError
from mcrnn.storage.root import Storage


def train(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="Configuration, or a search space that --set reduces to one."),
    ] = None,
    settings: SetOption = None,
    from_run: Annotated[
        str | None,
        typer.Option(metavar="RUN_ID", help="In place of FILE: repeat the run or trial of this id in MLflow."),
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Start a new run beside one of the same name.")] = False,
    storage: StorageOption = None,
) -> None:
    """Train one configuration; its model is kept in runs/NAME/model and its metrics in MLflow.

    The same command again continues an unfinished run from its last checkpoint, after anything. SIGTERM and Ctrl-C
    write a checkpoint first.
    """
    if (file is None) == (from_run is None):
        raise UserError("give a FILE, or --from-run with the id of a run in MLflow")
    root = Storage.open(storage)
    digest = None
    if from_run is not None:
        config, digest = _repeated(root, from_run, settings or [])
    else:
        config = load_configuration(file or "", settings or ())

    from mcrnn.tracking.provenance import code_version, source_line

    source = source_line(file) if file is not None else f"repeats the run {from_run}; mcrnn {code_version()}"
    print(source, flush=True)

    from mcrnn.runners import single_run

    single_run.run(config, root, new=new, digest=digest, facts={"source": source})


def _repeated(storage: Storage, run_id: str, settings: list[str]) -> tuple[Configuration, str]:
    """Return the configuration that a run in MLflow trained, with settings applied, and the digest of its store."""
    from mcrnn.tracking.mlflow_client import read_training
    from mcrnn.tracking.run_folder import CONFIGURATION_FILE

    content, digest = read_training(storage, run_id)
    with tempfile.TemporaryDirectory(prefix="mcrnn-run-") as folder:
        file = Path(folder) / CONFIGURATION_FILE
        file.write_text(json.dumps(content | {"name": f"{content['name']}-from-{run_id[:8]}"}, indent=1))
        return load_configuration(str(file), settings), digest


if __name__ == "__main__":
    main(train)
