"""The format of a field store: the contract between `data_prep`, which writes it, and `mcrnn.data`, which reads it.

A store is one Zarr v3 group. Each split is a subgroup with an array `field` of dimensions (sample, time, channel,
height, width), float32, and the coordinates of these dimensions. The root may have an array `mask`, see `MASK`. The
attributes of the root describe the data:

- `format`, `format_version`: see `FORMAT` and `FORMAT_VERSION`.
- `status`: `building`, or `complete` when everything else has been written, or `APPENDING`. Readers refuse stores that
  are not complete.
- `layout`: `samples` for independent trajectories of equal length, such as generated fields; `series` for one sample
  with many times, such as a reanalysis, in which windows may start anywhere.
- `channels`, `variable`, `units`, `time_step`, `boundary`: names of the channels, name of the field, its units, the
  time between frames, and how the field continues beyond its edges (see `BOUNDARIES`).
- `segments`: of a series with gaps in time, for each split the positions of the frames at which a segment starts.
- `long_name`, `calendar`, `latitude`: for a series, the field in words, the calendar of its times, and the latitude of
  each row where the rows have one.
- `inputs`: where there are channels that models are given and do not predict, their names, which are the last of
  `channels`, and for each `static` or the forcing that it belongs to, see `mcrnn.data.forcings`.
- `coarsening`: `area` where coarsening weights the rows of latitudes by the area of their cells. Stores without it are
  coarsened by the plain mean.
- `logarithms`: of channels that are the logarithm of a variable, what they are, such as `log(1 + tp / 0.001 m)`.
- `scaling`: of channels that networks see scaled by other statistics than mean and std, by which; see `MIN_MAX`.
- `statistics`: mean, std, min and max of each channel of the training split.
- `history`: of a store to which frames or samples were appended, its states, the oldest first and the present one last:
  `digest`, `date` of the change (UTC; none of the first), `split` that was appended to, `sources` of what was added,
  and the `frames` (of a series) or `samples` of each split and the `statistics` from then on.
- `recipe`, `versions`: all that determines the values, and the versions of the packages that made them.
- `manifest_sha256`: the SHA-256 of the manifest, called the digest of the store. The manifest lists every object except
  itself and the root's `zarr.json`, with size and SHA-256.
- `sha256`: the digest of the root's own `zarr.json`, see `root_digest`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

FORMAT = "mcrnn-field"
"""Value of the root attribute `format`, by which a store is recognised."""

FORMAT_VERSION = 1
"""Value of the root attribute `format_version` of a store without gaps in time, without a mask and without inputs."""

FORMAT_VERSION_WITH_MORE = 2
"""The same of a store that has them, which readers of version 1 would not see."""

FORMAT_VERSIONS = (FORMAT_VERSION, FORMAT_VERSION_WITH_MORE)
"""The versions that are read. Readers refuse every other one."""

SPLITS = ("train", "val", "test")
"""Names of the splits: one subgroup of the root each. Their positions are part of the seed of generated samples."""

DIMENSIONS = ("sample", "time", "channel", "height", "width")
"""Dimensions of the array `field`, in order."""

BOUNDARIES = ("periodic", "cylinder", "zeros")
"""Values of the root attribute `boundary`, which says how a field continues beyond the edges of its grid.

`periodic` continues at the opposite edge along both axes. `cylinder` does so along the width only (longitude) and has
nothing beyond the height (latitude). `zeros` has nothing beyond any edge."""

APPENDING = "appending"
"""Value of the root attribute `status` for the moment in which what is appended becomes part of the store."""

BY_AREA = "area"
"""Value of the root attribute `coarsening`."""

MIN_MAX = "min-max"
"""Value of the root attribute `scaling` for a channel: its min becomes 0 and its max 1."""

MANIFEST = "manifest.json"
"""Key of the manifest: JSON `{"objects": {KEY: {"size": BYTES, "sha256": HEXADECIMAL}}}`."""

MASK = "mask"
"""Array of the root (channel, height, width), bool, in a store whose field has no value at some points.

It is True where a channel has values. At the other points, `field` holds the mean of the first frame: finite, and of
the size of the field for whoever does not look at the mask. Networks see the mean of the training split there, which is
known only when all is written."""

DATA_ARRAYS = ("field", "initial_field")
"""Arrays that hold field values. `initial_field`, of generated fields only, is the state at t = 0."""

BUILD_FOLDER = ".build"
"""Folder below the store with the lease and the records of an unfinished build. A complete store has none."""


def canonical_json(value: Any) -> bytes:
    """Serialize a value to JSON that depends on nothing but the value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def root_digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of the root's `zarr.json`.

    It is taken of the document's canonical JSON without the attribute `sha256`, in which the digest itself is stored.
    """
    attributes = {k: v for k, v in document["attributes"].items() if k != "sha256"}
    return sha256(canonical_json({**document, "attributes": attributes}))


def is_beyond(key: str, axis: int, lengths: dict[str, int], shards: dict[str, int]) -> bool:
    """Return whether an object holds only samples, or frames of a series, beyond those that its split once had.

    Args:
        key: key of the object.
        axis: the axis along which stores grow: 0 for samples, 1 for the frames of a series.
        lengths: number of samples or frames of each split.
        shards: samples or frames that an object of each split has room for.
    """
    if not is_data(key):
        return False
    split, position = key.split("/field/c/")
    return int(position.split("/")[axis]) * shards[split] >= lengths[split]


def is_data(key: str) -> bool:
    """Return whether an object holds field values.

    These objects are large. Their chunks carry checksums that every read compares, so their SHA-256 is compared on
    request only; all other objects are compared at every opening.
    """
    return any(f"/{name}/c/" in key for name in DATA_ARRAYS)
