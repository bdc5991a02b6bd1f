"""The folder in which a benchmark works."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def root_folder(root: Path | None) -> Iterator[Path]:
    """Give the folder that `--root` names, which is made and kept, or a temporary one that is deleted in the end."""
    if root is not None:
        root.mkdir(parents=True, exist_ok=True)
        yield root.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="mcrnn-") as folder:
        yield Path(folder)
