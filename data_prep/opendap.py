"""OPeNDAP data sets as xarray opens them. Values are read where they are, in blocks that servers accept.

Values are asked for here and not by an engine of xarray: netCDF4 returns values that are none, without an error, where
an answer is cut off; pydap loses the types of attributes, and asks by http what was to be asked by https.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.backends.common import AbstractDataStore
from xarray.core import indexing

from data_prep.opendap_answers import (
    RemoteVariable,
    decode_dap2,
    decode_dap4,
    not_in_full,
    parse_dap2,
    parse_dap4,
)
from data_prep.opendap_endpoints import Endpoint, find_endpoint
from data_prep.opendap_requests import Answer, fetch, server_message
from mcrnn.errors import UserError, first_line

BLOCK_BYTES = 50_000_000
"""Most that is asked for at a time. THREDDS refuses more than 500 MB unless it is configured otherwise."""

SAMPLED_BLOCKS, SAMPLED_BYTES = 4, 2**20
"""Blocks of a variable by which it is known where a server does not say when it was changed, and the size of each."""

RECENT, SECONDS_BETWEEN_ANSWERS = 10.0, 1.1
"""Seconds up to which a data set may have been changed when it was asked for, as some servers say of all. Times are
given in whole seconds, so that after the second of these such a server says another one."""

_changed_when_asked: set[str] = set()
_checked: dict[str, RemoteDataset] = {}
"""What servers described when `fingerprint` asked them last, by URL."""

Block = tuple[slice, ...]
"""A part of a variable: for each dimension first, step, and one after the last; all positive."""


@dataclass(frozen=True)
class RemoteDataset:
    """What a server describes.

    Attributes:
        url: the source, for messages.
        endpoint: where it is.
        variables: the variables that are arrays of numbers or text, by name.
        modified: when it was changed, empty where the server does not say so.
        entity_tag: the `ETag` that the server gives with it, empty where it gives none, or `modified` is empty.
    """

    url: str
    endpoint: Endpoint
    variables: dict[str, RemoteVariable]
    modified: str
    entity_tag: str

    def read(self, requests: dict[str, Block]) -> dict[str, np.ndarray]:
        """Read a block of some variables in one request.

        Raises:
            UserError: the server does not answer, not in full or not understandably, or the source has changed.
        """
        parts = [self.variables[name].key + _hyperslab(block) for name, block in requests.items()]
        if self.endpoint.protocol == "dap2":
            answer = fetch(f"{self.endpoint.address}.dods?{','.join(parts)}", self.url)
            arrays = decode_dap2(answer, self.url)
        else:
            constraint = ";".join(f"/{part}" for part in parts)
            answer = fetch(f"{self.endpoint.address}.dap?dap4.ce={constraint}&dap4.checksum=true", self.url)
            arrays = decode_dap4(answer, self.url)
        if answer.modified and self.modified and answer.modified != self.modified:
            raise UserError(f"'{self.url}' has changed since the build was planned; run the command again")
        found = {}
        for name, block in requests.items():
            variable = self.variables[name]
            values = arrays.get(variable.key)
            shape = tuple(len(range(part.start, part.stop, part.step)) for part in block)
            if values is None or values.shape != shape:
                raise not_in_full(self.url)
            found[name] = values.astype(variable.dtype, copy=False)
        return found


@functools.lru_cache(maxsize=256)
def open_opendap(url: str, **options: Any) -> xr.Dataset:
    """Open an OPeNDAP data set. It is described and its coordinates are read once by each process.

    Where `fingerprint` has just asked for the description, that is taken.

    Args:
        url: its URL.
        options: those of `xarray.open_dataset`.

    Raises:
        UserError: it cannot be read.
    """
    from xarray.backends.store import StoreBackendEntrypoint

    store: Any = _DataStore(_checked.get(url) or describe(url))
    return xr.open_dataset(store, engine=StoreBackendEntrypoint, **options)


def require_pydap(url: str) -> None:
    """Refuse to go on without pydap.

    Raises:
        UserError: it is not installed; the message says how to.
    """
    try:
        import pydap.parsers.dds  # noqa: F401
    except ImportError:
        raise UserError(
            f"'{url}' is read by OPeNDAP, which needs one more package: pip install 'mcrnn[opendap]'"
        ) from None


def describe(url: str) -> RemoteDataset:
    """Ask a server what a data set holds.

    Raises:
        UserError: there is no such data set, or it is not described understandably.
    """
    require_pydap(url)
    endpoint = find_endpoint(url)
    assert endpoint is not None, "only sources whose format is OPeNDAP are described"
    suffixes = (".dds", ".das") if endpoint.protocol == "dap2" else (".dmr",)
    answers = tuple(fetch(endpoint.address + suffix, url) for suffix in suffixes)
    parse = parse_dap2 if endpoint.protocol == "dap2" else parse_dap4
    try:
        variables = parse(*(answer.text for answer in answers))
    except Exception as error:  # pydap raises plain exceptions, and those of Python
        reason = next(filter(None, (server_message(answer.content) for answer in answers)), first_line(error))
        raise UserError(f"'{url}' is not described as OPeNDAP has it ({reason})") from None
    first = answers[0]
    if not first.modified or _is_time_of_answer(endpoint.address + suffixes[0], url, first):
        return RemoteDataset(url, endpoint, variables, modified="", entity_tag="")
    return RemoteDataset(url, endpoint, variables, first.modified, first.entity_tag)


def _is_time_of_answer(address: str, url: str, answer: Answer) -> bool:
    """Return whether a server says of an address that it was changed when it is asked for; asked again where unclear.

    A server is known for what it does with a folder, so that its other data sets are not asked for again.
    """
    folder = address.rpartition("/")[0]
    if abs(answer.age) > RECENT or folder in _changed_when_asked:
        return abs(answer.age) <= RECENT
    time.sleep(SECONDS_BETWEEN_ANSWERS)
    if fetch(address, url).modified == answer.modified:
        return False
    _changed_when_asked.add(folder)
    return True


def fingerprint(url: str, arrays: Sequence[str]) -> tuple[int, str]:
    """Return the size of some arrays, and a checksum by which a changed source is noticed.

    It is one of the description of these arrays, and of when the data set was changed. Where the server does not say
    that, also of their values: of arrays up to 1 MB as a whole, of others of four blocks. Attributes of the data set do
    not count: some servers note each request in its `history`.

    Args:
        url: the source.
        arrays: names of the arrays.

    Raises:
        UserError: it cannot be read.
    """
    dataset = _checked[url] = describe(url)
    digest = hashlib.sha256(repr((dataset.modified, dataset.entity_tag)).encode())
    size = 0
    for name in arrays:
        variable = dataset.variables.get(name)
        if variable is None:
            continue
        digest.update(_description(name, variable).encode())
        size += math.prod(variable.shape) * variable.dtype.itemsize
        if not dataset.modified:
            for block in _sampled(variable):
                digest.update(name.encode() + dataset.read({name: block})[name].tobytes())
    return size, digest.hexdigest()


def _description(name: str, variable: RemoteVariable) -> str:
    """Return what a server says of a variable, as the same text whatever the order of its attributes."""
    attributes = [(key, np.asarray(value)) for key, value in sorted(variable.attributes.items())]
    values = [(key, value.dtype.str, value.tolist()) for key, value in attributes]
    return repr((name, variable.dimensions, variable.shape, variable.dtype.str, values))


def _sampled(variable: RemoteVariable) -> list[Block]:
    """Return the blocks by which a variable is known."""
    shape, itemsize = variable.shape, variable.dtype.itemsize
    if math.prod(shape) * itemsize <= SAMPLED_BYTES:
        return [tuple(slice(0, length, 1) for length in shape)] if math.prod(shape) else []
    sizes: list[int] = []
    left = SAMPLED_BYTES // itemsize
    for length in reversed(shape[1:]):
        sizes.insert(0, max(1, min(length, left)))
        left //= sizes[0]
    positions = np.unique(np.linspace(0, shape[0] - 1, SAMPLED_BLOCKS).round().astype(int))
    return [(slice(int(p), int(p) + 1, 1), *(slice(0, size, 1) for size in sizes)) for p in positions]


class _DataStore(AbstractDataStore):
    """A data set as xarray's engines have it. Coordinates of dimensions are read at once, in one request."""

    def __init__(self, dataset: RemoteDataset) -> None:
        self.dataset = dataset
        whole: dict[str, Block] = {
            name: (slice(0, variable.shape[0], 1),)
            for name, variable in dataset.variables.items()
            if variable.dimensions == (name,) and variable.shape[0] and variable.dtype.kind != "S"
        }
        sizes = itertools.accumulate(dataset.variables[name].shape[0] * 8 for name in whole)
        together = {name: whole[name] for name, size in zip(whole, sizes, strict=True) if size <= BLOCK_BYTES}
        self.coordinates = dataset.read(together) if together else {}

    def get_variables(self) -> dict[str, xr.Variable]:
        """Return the variables, whose values are read when they are asked for."""
        found = {}
        for name, variable in self.dataset.variables.items():
            data: Any = self.coordinates.get(name)
            if data is None:
                data = indexing.LazilyIndexedArray(_RemoteArray(self.dataset, name))
            found[name] = xr.Variable(variable.dimensions, data, variable.attributes)
        return found

    def get_attrs(self) -> dict[str, Any]:
        """Return the attributes of the data set, which are of no use here."""
        return {}


class _RemoteArray(BackendArray):
    """The values of a variable, of which only what is indexed is read."""

    def __init__(self, dataset: RemoteDataset, name: str) -> None:
        self.dataset, self.name = dataset, name
        self.shape, self.dtype = dataset.variables[name].shape, dataset.variables[name].dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[int | slice | np.ndarray, ...]) -> np.ndarray:
        if not self.shape:
            return self.dataset.read({self.name: ()})[self.name]
        positions = [np.atleast_1d(np.arange(length)[index]) for index, length in zip(key, self.shape, strict=True)]
        values = np.empty([len(of_axis) for of_axis in positions], self.dtype)
        if values.size:
            for places in itertools.product(*map(_runs, positions)):
                block = tuple(_slice(of_axis[place]) for of_axis, place in zip(positions, places, strict=True))
                self._fill(values[places], block)
        return values[tuple(0 if isinstance(index, int | np.integer) else slice(None) for index in key)]

    def _fill(self, target: np.ndarray, block: Block) -> None:
        """Read a block into an array, in as few requests as its size allows."""
        if target.nbytes <= BLOCK_BYTES or target.size == 1:
            target[...] = self.dataset.read({self.name: block})[self.name]
            return
        axis = next(axis for axis, length in enumerate(target.shape) if length > 1)
        count = max(1, BLOCK_BYTES * target.shape[axis] // target.nbytes)
        for first in range(0, target.shape[axis], count):
            place = (slice(None),) * axis + (slice(first, first + count),)
            part = block[axis]
            stop = min(part.start + (first + count) * part.step, part.stop)
            of_part = slice(part.start + first * part.step, stop, part.step)
            self._fill(target[place], (*block[:axis], of_part, *block[axis + 1 :]))


def _runs(positions: np.ndarray) -> list[slice]:
    """Cut positions into runs that are equally far apart and increase: a request has one for each dimension."""
    found, first = [], 0
    while first < len(positions):
        stop = first + 1
        if stop < len(positions) and (step := positions[stop] - positions[first]) > 0:
            stop += 1
            while stop < len(positions) and positions[stop] - positions[stop - 1] == step:
                stop += 1
        found.append(slice(first, stop))
        first = stop
    return found


def _slice(run: np.ndarray) -> slice:
    return slice(int(run[0]), int(run[-1]) + 1, int(run[1] - run[0]) if len(run) > 1 else 1)


def _hyperslab(block: Block) -> str:
    return "".join(f"[{part.start}:{part.step}:{part.stop - 1}]" for part in block)
