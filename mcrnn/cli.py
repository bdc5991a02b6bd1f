"""What all commands share: the options --storage and --set, how they are started and how they end.

Exit codes: 0 when everything that was asked for is done, 2 for an error that the user can correct, 130 for an
interruption, 1 for a bug or a closed pipe.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import sqlite3  # noqa: F401  (before xarray loads its readers: that of GRIB files brings an SQLite too old for MLflow)
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from mcrnn.errors import LoggedError, UserError
from mcrnn.passwords import mask_passwords

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="FOLDER",
        help="Storage root, a folder or an s3:// prefix, with data/, searches/, runs/ and reports/; by default "
        "MCRNN_STORAGE, or the current folder if that is not set.",
    ),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Set a field in place of its value in FILE: train.epochs=5. Repeatable."
    ),
]

WarmUpOption = Annotated[
    int | None, typer.Option(min=1, help="Number of given frames; by default as in the first model's validation.")
]

HorizonOption = Annotated[
    int | None, typer.Option(min=1, help="Number of closed-loop steps; by default as in the first model's validation.")
]

WorkersOption = Annotated[
    int,
    typer.Option(
        min=1,
        help="Score the windows in so many processes on Ray: with a GPU each where the cluster has some, else with a "
        "CPU and a thread each.",
    ),
]

DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")]


def report_failures(failures: Sequence[str]) -> None:
    """Name on stderr what could not be done, and end with exit code 2 if there is anything."""
    for failure in failures:
        print(f"error: {mask_passwords(failure)}", file=sys.stderr)
    if failures:
        sys.exit(2)


def main(command: Callable[..., Any]) -> None:
    """Run one typer command as a program and end the process; see `run_app`."""
    run_app(new_app(command))


def new_app(command: Callable[..., Any]) -> typer.Typer:
    """Return a typer app of one command.

    When it is interrupted by Ctrl-C, it prints a line and ends with exit code 130.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

    @functools.wraps(command)
    def until_interrupted(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt:  # typer would end without a word
            print("interrupted; the same command continues", file=sys.stderr)
            sys.exit(130)

    app.command()(until_interrupted)
    return app


def run_app(app: Callable[[], Any]) -> None:
    """Run a typer app as a program and end the process.

    A UserError ends it with one line on stderr and exit code 2, a LoggedError in the same way with exit code 1.
    """
    # Ray, MLflow and PyTorch create a million objects that live until the end. With Python's default threshold, looking
    # for garbage among them takes a third of the time of their import. Destroying them at the end would take a second
    # or two, so the process exits without it.
    gc.set_threshold(10_000)
    status = 1  # an unexpected exception leaves it so

    def leave() -> None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)  # registered first, so that it is called last
    try:
        _report_mistakes(app)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        raise


def _report_mistakes(app: Callable[[], Any]) -> None:
    try:
        app()
    except UserError as error:
        print(f"error: {mask_passwords(str(error))}", file=sys.stderr)
        sys.exit(2)
    except LoggedError as error:
        print(f"error: {mask_passwords(str(error))}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # the reader (head, less) has closed the pipe; the interpreter would report it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
