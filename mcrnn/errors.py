"""Errors that a user can correct, as distinct from bugs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LISTED = 50
"""Most known words that a message lists."""


class UserError(ValueError):
    """An error in the input or the environment that the user can correct.

    Commands print its message to stderr, without a traceback, and end with exit code 2.
    """


class LoggedError(Exception):
    """An unexpected error whose traceback has been written to a file; its message is one line that names the file.

    Commands print the message to stderr and end with exit code 1.
    """


class NotEnoughMemoryError(UserError):
    """A training needs more memory than there is. Starting it again would fail in the same way."""


class IsolatedError(UserError):
    """An error that one run has met, and others may not meet, so that it is no reason to end a search."""


class DiskError(IsolatedError):
    """A disk cannot be read or written, as when it is full. On another machine there may be no such problem."""


class DamagedFileError(IsolatedError):
    """A file that this software has written cannot be understood any more. Other runs may have no such file."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown word.

    It is `; did you mean 'x'?` with the nearest known word, or a list of the known words if none is near, of at most
    `MOST_LISTED`.
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    return f"; known: {', '.join(known[:MOST_LISTED])}{more}" if known else ""
