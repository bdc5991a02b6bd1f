"""Train one configuration.

    python -m mcrnn.train my_configuration.yaml
    python -m mcrnn.train --from-run 3f9c...                       # repeats a run that MLflow has recorded
    python -m mcrnn.train --from-run models:/mcrnn-ns@champion --compare    # and says whether it gives the same bits
    python -m mcrnn.train search_spaces/paper/ns_s25_tf20.yaml --set model.architecture=minconvexplstm

With `train.workers` above 1 it trains data-parallel on Ray Train, else in this process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcrnn.cli import SetOption, StorageOption, main
from mcrnn.config.loading import load_configuration
from mcrnn.config.sections import Configuration
from mcrnn.errors import UserError
from mcrnn.storage.root import Storage

if TYPE_CHECKING:
    from mcrnn.tracking.lineage import Lineage


def train(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="Configuration, or a search space that --set reduces to one."),
    ] = None,
    settings: SetOption = None,
    from_run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            help="In place of FILE: repeat the run or trial of this id in MLflow, or models:/NAME@ALIAS.",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="With --from-run: say whether the weights are the same bits, and if not, from which epoch on and what "
            "differs in packages, code or machine (exit code 1).",
        ),
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Start a new run beside one of the same name.")] = False,
    storage: StorageOption = None,
) -> None:
    """Train one configuration; its model is kept in runs/NAME/model and its metrics in MLflow.

    The same command again continues an unfinished run from its last checkpoint, after anything. SIGTERM and Ctrl-C
    write a checkpoint first.
    """
    if (file is None) == (from_run is None):
        raise UserError("give a FILE, or --from-run with the id of a run in MLflow")
    if compare and (from_run is None or settings):
        raise UserError("--compare goes with --from-run, and without --set")
    root = Storage.open(storage)

    from mcrnn.runners import single_run
    from mcrnn.tracking.lineage import compare as compare_with
    from mcrnn.tracking.lineage import read_lineage
    from mcrnn.tracking.provenance import code_version, source_line

    if from_run is None:
        source = source_line(file or "")
        print(source, flush=True)
        single_run.run(load_configuration(file or "", settings or ()), root, new=new, facts={"source": source})
        return
    lineage = read_lineage(root, from_run)
    config = _repeated(lineage, settings or [])
    source = f"repeats the run {lineage.run_id}; mcrnn {code_version()}"
    print(source, flush=True)
    if compare and lineage.threads is not None:
        import torch

        torch.set_num_threads(lineage.threads)
    folder = single_run.run(
        config,
        root,
        new=new,
        digest=lineage.store_digest,
        facts={"source": source},
        target=max(lineage.epochs, default=None) if compare else None,
    )
    if compare:
        comparison = compare_with(lineage, folder, root)
        print("\n".join(comparison.lines))
        sys.exit(0 if comparison.is_same else 1)


def _repeated(lineage: Lineage, settings: list[str]) -> Configuration:
    """Return the configuration of a training under a name of its own, with settings applied."""
    from mcrnn.tracking.run_folder import CONFIGURATION_FILE

    content = lineage.configuration
    with tempfile.TemporaryDirectory(prefix="mcrnn-run-") as folder:
        file = Path(folder) / CONFIGURATION_FILE
        file.write_text(json.dumps(content | {"name": f"{content['name']}-from-{lineage.run_id[:8]}"}, indent=1))
        return load_configuration(str(file), settings)


if __name__ == "__main__":
    main(train)
