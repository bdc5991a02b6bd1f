"""The field store: the contract between `data_prep`, which writes it, and `mcrnn.fields`, which reads it.

One Zarr v3 group. For each split a subgroup with an array `field` of dimensions (sample, time, channel,
height, width), float32, and its coordinate arrays. `manifest.json` lists every object but the root's own
`zarr.json` with size and SHA-256. The root attributes describe the data and carry the SHA-256 of the manifest
(the store's digest) and of the root's own canonical JSON.

`layout` says what a sample is: `samples` are independent trajectories of one length; a `series` is one sample
with many times, which windows may start anywhere in.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

FORMAT = "mcrnn-field"
FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
DIMENSIONS = ("sample", "time", "channel", "height", "width")
BOUNDARIES = ("periodic", "cylinder", "zeros")
MANIFEST = "manifest.json"
DATA_ARRAYS = ("field", "initial_field")
BUILD_FOLDER = ".build"
"""where a build keeps its markers; gone when the store is complete"""


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def root_digest(document: dict[str, Any]) -> str:
    """SHA-256 of the root's `zarr.json`, as canonical JSON, without the digest that its attributes carry."""
    attributes = {k: v for k, v in document["attributes"].items() if k != "sha256"}
    return sha256(canonical_json({**document, "attributes": attributes}))


def is_data(key: str) -> bool:
    """Whether an object holds field values, which are guarded by checksums of their own and hashed on request."""
    return any(f"/{name}/c/" in key for name in DATA_ARRAYS)
