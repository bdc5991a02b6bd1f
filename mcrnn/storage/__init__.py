"""Storage: folders on local disks and on S3 behind one interface, leases, retries, and sending in the background.

Knows nothing of MLflow, Ray or the content that it stores, and imports only `mcrnn.errors`. zarr and s3fs are imported
only where they are used.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Return the class that the loader of a model registered by version 0.1.0 imports from here; see `mcrnn`."""
    if name == "LocalFolder":
        from mcrnn.storage.local import LocalFolder

        return LocalFolder
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
