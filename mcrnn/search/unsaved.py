"""What Ray Tune is given of a search and must not save."""

from __future__ import annotations

from typing import Any


class Unsaved:
    """A base of callbacks, searchers and schedulers, named before that of Tune, which leaves them out of Tune's state.

    Tune pickles them for its own state, from which a search is never restored: it goes on from its study and folders.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing."""
        return {}
