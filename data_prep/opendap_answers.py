"""What OPeNDAP servers answer: descriptions of data sets, and values, by DAP2 and by DAP4. They are parsed by pydap.

Sources: https://www.opendap.org/pdf/ESE-RFC-004v1.2.pdf, and https://opendap.github.io/dap4-specification/DAP4.html.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np

from data_prep.opendap_requests import Answer, server_message
from mcrnn.errors import UserError
from mcrnn.storage.retry import ServiceUnavailableError


@dataclass(frozen=True)
class RemoteVariable:
    """A variable as a server describes it.

    Attributes:
        key: its name in requests.
        dimensions: names of its dimensions; `phony_dim_0` and so on where they have none.
        shape: their lengths.
        dtype: type of its values.
        attributes: its attributes; those that are numbers are of the types that the server says.
    """

    key: str
    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    attributes: dict[str, Any]


def parse_dap2(dds: str, das: str) -> dict[str, RemoteVariable]:
    """Return the variables that a server describes by DAP2, of grids also the coordinates that nothing else has."""
    from pydap.model import BaseType, GridType
    from pydap.parsers.das import DASParser, add_attributes
    from pydap.parsers.dds import LOWER_DAP2_TO_NUMPY_PARSER_TYPEMAP, dds_to_dataset

    class TypedParser(DASParser):
        """Numbers are of the types that the server says, on which decoding depends."""

        def attribute(self) -> tuple[str, Any]:
            kind = self.peek(r"[^\s]+").lower()
            name, values = super().attribute()
            if kind in LOWER_DAP2_TO_NUMPY_PARSER_TYPEMAP and kind not in ("string", "url"):
                values = np.array(values, _native(LOWER_DAP2_TO_NUMPY_PARSER_TYPEMAP[kind]))[()]
            return name, values

    dataset = add_attributes(dds_to_dataset(dds), TypedParser(das).parse())
    found: dict[str, RemoteVariable] = {}
    maps: dict[str, RemoteVariable] = {}
    for child in dataset.children():
        if isinstance(child, GridType):
            array, *coordinates = child.children()
            found[unquote(child.name)] = _remote_variable(array, child.attributes | array.attributes)
            maps |= {unquote(c.name): _remote_variable(c, c.attributes) for c in coordinates}
        elif isinstance(child, BaseType):
            found[unquote(child.name)] = _remote_variable(child, child.attributes)
    return {name: variable for name, variable in maps.items() if name not in found} | found


def _remote_variable(variable: Any, attributes: dict[str, Any]) -> RemoteVariable:
    names = [unquote(str(name)).removeprefix("/") for name in variable.dims]
    dimensions = tuple(names) if names else tuple(f"phony_dim_{axis}" for axis in range(len(variable.shape)))
    attributes = {unquote(name): value for name, value in attributes.items() if not isinstance(value, dict)}
    return RemoteVariable(
        variable.id.lstrip("/"), dimensions, tuple(variable.shape), _native(variable.dtype), attributes
    )


def _native(dtype: Any) -> np.dtype:
    return np.dtype(dtype).newbyteorder("=")


def decode_dap2(answer: Answer, url: str) -> dict[str, np.ndarray]:
    """Return the arrays of a data answer of DAP2, which has a description, the line "Data:" and the values."""
    from pydap.handlers.dap import unpack_dap2_data
    from pydap.lib import BytesReader, walk
    from pydap.model import BaseType
    from pydap.parsers.dds import dds_to_dataset

    description, line, values = answer.content.partition(b"\nData:\n")
    if not line:
        raise not_in_full(url, server_message(answer.content))
    reader = BytesReader(values)
    dataset = dds_to_dataset(description.decode("utf-8", "replace"))
    try:
        unpacked = unpack_dap2_data(reader, dataset)
    except (ValueError, IndexError):
        raise not_in_full(url) from None
    if reader.read(1):  # an error that took the place of values is longer than these
        raise not_in_full(url)
    arrays = itertools.chain(*(of_child if isinstance(of_child, tuple) else (of_child,) for of_child in unpacked))
    return {variable.id: np.asarray(a) for variable, a in zip(walk(dataset, BaseType), arrays, strict=True)}


def parse_dap4(dmr: str) -> dict[str, RemoteVariable]:
    """Return the variables in the root that a server describes by DAP4."""
    from xml.etree import ElementTree

    from pydap.parsers.dmr import dmr_to_dataset

    types: dict[tuple[str, str], str] = {
        (element.get("name", ""), attribute.get("name", "")): attribute.get("type", "")
        for element in ElementTree.fromstring(dmr)
        for attribute in element
        if attribute.tag.endswith("Attribute")
    }
    found = {}
    for name, variable in dmr_to_dataset(dmr).items():
        if not hasattr(variable, "shape"):
            continue
        attributes = {}
        for key, value in variable.attributes.items():
            kind = types.get((unquote(name), key))
            if kind is not None:
                attributes[key] = value if kind == "String" else np.array(value, kind.lower())[()]
        found[unquote(name)] = _remote_variable(variable, attributes)
    return found


def decode_dap4(answer: Answer, url: str) -> dict[str, np.ndarray]:
    """Return the arrays of a data answer of DAP4, each of which has a checksum."""
    from pydap.handlers.dap import UNPACKDAP4DATA
    from webob.response import Response

    try:
        dataset = UNPACKDAP4DATA(Response(body=answer.content, charset="utf-8"), checksums=True).dataset
        found = {name: np.asarray(variable.data) for name, variable in dataset.items() if hasattr(variable, "shape")}
        checksums = {name: int(dataset[name].attributes["_DAP4_Checksum_CRC32"]) for name in found}
    except Exception:  # pydap raises what comes of reading beyond the end, or of an error that is no description
        raise not_in_full(url, server_message(answer.content)) from None
    if any(zlib.crc32(values.tobytes()) != checksums[name] for name, values in found.items()):
        raise not_in_full(url)
    return found


def not_in_full(url: str, reason: str = "") -> UserError:
    """Return the error of an answer that is cut off, or holds an error in place of values."""
    return ServiceUnavailableError(
        f"the server of '{url}' does not answer in full{f' ({reason})' if reason else ''}; the same command goes on "
        "when it works again"
    )
