"""The console command `mcrnn`: every command of the project under one name.

    mcrnn tune search_spaces/demo.yaml          # is python -m mcrnn.tune search_spaces/demo.yaml
    mcrnn data navier-stokes data/ns.zarr       # is python -m data_prep.navier_stokes data/ns.zarr
    mcrnn --install-completion                  # lets the shell complete commands and options

The module of a command is imported only when that command is named, so that help and completion are quick. The commands
of `data_prep` are known by name alone: `mcrnn` does not depend on `data_prep`.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import typer
import typer.core
import typer.main

from mcrnn.cli import new_app, run_app

COMMANDS = {
    "tune": ("mcrnn.tune", "tune", "Search hyperparameters and register the best model."),
    "train": ("mcrnn.train", "train", "Train one configuration."),
    "evaluate": ("mcrnn.evaluate", "evaluate", "Evaluate models on the test split and write a report."),
    "leaderboard": ("mcrnn.leaderboard", "leaderboard", "Rank all models of a store."),
    "reproduce": ("mcrnn.reproduce", "reproduce", "Train the paper's configurations and print its tables."),
    "forecast": ("mcrnn.forecast", "forecast", "Forecast from a file or store of your own."),
    "serve": ("mcrnn.serve", "serve", "Serve forecasts of a model over HTTP."),
    "status": ("mcrnn.status", "status", "Show searches and runs from any terminal."),
    "report": ("mcrnn.report", "report", "Write the page of a search."),
    "stop": ("mcrnn.stop", "stop", "Stop a search, one of its trials, or a run."),
    "promote": ("mcrnn.promote", "promote", "Decide which version of a model is in use."),
    "ui": ("mcrnn.ui", "ui", "Show runs and the model registry in a browser."),
    "convert": ("mcrnn.convert", "convert", "Convert a checkpoint of the paper's code."),
    "schema": ("mcrnn.schema", "schema", "Print the JSON schema of the YAML files."),
}
"""module, function and one line of help of each command"""

DATA_COMMANDS = {
    "navier-stokes": ("data_prep.navier_stokes", "generate", "Generate 2D Navier-Stokes vorticity."),
    "convert": ("data_prep.convert", "convert", "Convert NetCDF, GRIB, HDF5 or Zarr."),
    "append": ("data_prep.append", "append", "Append later times to a series."),
    "netcdf": ("data_prep.netcdf", "convert", "The same by its former name."),
    "inspect": ("data_prep.inspect", "inspect", "Describe, verify or animate a store."),
}
"""the same of the commands below `mcrnn data`"""


class _LazyGroup(typer.core.TyperGroup):
    """A group that lists placeholders and imports a command when it is named on the command line."""

    table: ClassVar[dict[str, tuple[str, str, str]]] = {}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        address = self.table.get(name or "")
        if address is not None:
            module, function, _ = address
            command = typer.main.get_command(new_app(getattr(importlib.import_module(module), function)))
        return name, command, rest


def _new_group(commands: dict[str, tuple[str, str, str]], help_text: str, *, completion: bool = False) -> typer.Typer:
    """Return a group with a placeholder for each command, which carries its line of help."""
    group = typer.Typer(
        cls=type("_Group", (_LazyGroup,), {"table": commands}),
        help=help_text,
        add_completion=completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
    )
    for name, (_, _, line) in commands.items():
        group.command(name, short_help=line)(_placeholder)
    return group


def _placeholder() -> None:
    raise AssertionError("a placeholder is replaced by its command before it is called")


def main() -> None:
    """Run the command that is named on the command line; it ends as `python -m` of its module does."""
    description = (
        "Train convolutional recurrent forecasters of spatiotemporal fields and search their hyperparameters.\n\n"
        "`mcrnn tune FILE` is the same as `python -m mcrnn.tune FILE`, and so on."
    )
    app = _new_group(COMMANDS, description, completion=True)
    app.add_typer(_new_group(DATA_COMMANDS, "Make and inspect field stores."), name="data")
    run_app(app)
