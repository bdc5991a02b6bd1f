"""The field store on disk: the contract between `data_prep`, which writes it, and `mcrnn.fields`, which reads it.

One Zarr v3 group. For each split a subgroup with an array `field` of dimensions (sample, time, channel,
height, width), float32, and its coordinate arrays. `manifest.json` lists every object but the root's own
`zarr.json` with size and SHA-256. The root attributes describe the data, carry the SHA-256 of the manifest
(the store's digest) and the SHA-256 of their own canonical JSON.
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
BUILD_FOLDER = ".build"
"""where a build keeps its markers; gone when the store is complete"""


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def attributes_digest(attributes: dict[str, Any]) -> str:
    """SHA-256 of the root attributes' canonical JSON without the digest itself."""
    return sha256(canonical_json({k: v for k, v in attributes.items() if k != "attributes_sha256"}))
