"""What all commands share: how they are started and how they end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mcrnn.errors import UserError

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="FOLDER",
        help="Where data/, searches/, runs/ and reports/ live; else MCRNN_STORAGE, else the current folder.",
    ),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of FILE, such as train.epochs=5. Repeatable."),
]


def main(command: Callable[..., Any]) -> None:
    """Run one typer command as a program; see `run_app`."""
    run_app(new_app(command))


def new_app(command: Callable[..., Any]) -> typer.Typer:
    """Return a typer app of one command, which says so where it is interrupted and ends with exit code 130."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

    @functools.wraps(command)
    def until_interrupted(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt:  # which typer would end silently
            print("interrupted; the same command continues", file=sys.stderr)
            sys.exit(130)

    app.command()(until_interrupted)
    return app


def run_app(app: Callable[[], Any]) -> None:
    """Run a typer app; mistakes of the user end with one clear message on stderr and exit code 2."""
    # Ray, MLflow and PyTorch make a million objects that stay. Looking for garbage among them takes a third of the time
    # of their import, and taking them apart at the end a second or two.
    gc.set_threshold(10_000)
    status = 1  # of an exception that nobody expects

    def leave() -> None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)  # the first, hence the last to be called
    try:
        _report_mistakes(app)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        raise


def _report_mistakes(app: Callable[[], Any]) -> None:
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # the reader (head, less) is gone; keep the interpreter from reporting it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
