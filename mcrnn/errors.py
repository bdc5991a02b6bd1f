"""What a user can mend, told apart from bugs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that the user can mend. Commands print its message and end with exit code 2, no traceback."""


class NotEnoughMemoryError(UserError):
    """A training that needs more memory than there is; the same again would, too."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'?' for the nearest known word, or the list of the known ones where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
