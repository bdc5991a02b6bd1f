"""What OPeNDAP servers answer: descriptions of data sets, and values, by DAP2 and by DAP4. They are parsed by pydap.

Sources: https://www.opendap.org/pdf/ESE-RFC-004v1.2.pdf, and https://opendap.github.io/dap4-specification/DAP4.html.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np

from data_prep.opendap_attributes import read_attribute, read_with_sign
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
        dtype: type of its values, with the sign that they have.
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
    from pydap.parsers.dds import dds_to_dataset

    class TypedParser(DASParser):
        """Numbers are of the types that the server says, on which decoding depends."""

        def attribute(self) -> tuple[str, Any]:
            kind, name = self.consume(r"[^\s]+"), self.consume(r"[^\s;]+")
            texts = []
            while not self.peek(";"):
                texts.append(self.consume(r'""|".*?[^\\]"|[^;,]+').strip().strip('"'))
                if self.peek(","):
                    self.consume(",")
            self.consume(";")
            return name, read_attribute(kind, texts)

    dataset = add_attributes(dds_to_dataset(dds), TypedParser(das).parse())
    found: dict[str, RemoteVariable] = {}
    maps: dict[str, RemoteVariable] = {}
    for child in dataset.children():
        if isinstance(child, GridType):
            array, *coordinates = child.children()
            found[unquote(child.name)] = _remote_variable(array, child.attributes | array.attributes, False)
            maps |= {unquote(c.name): _remote_variable(c, c.attributes, False) for c in coordinates}
        elif isinstance(child, BaseType):
            found[unquote(child.name)] = _remote_variable(child, child.attributes, False)
    return {name: variable for name, variable in maps.items() if name not in found} | found


def _remote_variable(variable: Any, attributes: dict[str, Any], has_signed_bytes: bool) -> RemoteVariable:
    names = [unquote(str(name)).removeprefix("/") for name in variable.dims]
    dimensions = tuple(names) if names else tuple(f"phony_dim_{axis}" for axis in range(len(variable.shape)))
    plain = {unquote(name): value for name, value in attributes.items() if not isinstance(value, dict)}
    key = variable.id.lstrip("/")
    dtype, found = read_with_sign(unquote(key), _native(variable.dtype), plain, has_signed_bytes)
    return RemoteVariable(key, dimensions, tuple(variable.shape), dtype, found)


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
    from pydap.parsers.dmr import dmr_to_dataset

    root = _without_namespaces(dmr)
    attributes = {
        element.get("name", ""): {
            attribute.get("name", ""): read_attribute(attribute.get("type", ""), _texts(attribute))
            for attribute in element.findall("Attribute")
            if attribute.get("type") not in ("Container", "OtherXML")
        }
        for element in root
        if element.tag != "Attribute"
    }
    found = {}
    for name, variable in dmr_to_dataset(_without_attributes(root)).items():
        if hasattr(variable, "shape"):
            found[unquote(name)] = _remote_variable(variable, attributes.get(unquote(name), {}), True)
    return found


def _texts(attribute: ElementTree.Element) -> list[str]:
    """Return the values of an attribute, which DAP4 has in three ways."""
    own = attribute.get("value")
    values = [value.text or value.get("value") or "" for value in attribute.findall("Value")]
    return values if own is None else [own, *values]


def _without_namespaces(dmr: str) -> ElementTree.Element:
    root = ElementTree.fromstring(dmr)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _without_attributes(root: ElementTree.Element) -> str:
    """Return a description without the attributes, on which pydap stumbles, but for those by which it knows servers."""
    for parent in root.iter():
        for child in parent.findall("Attribute"):
            if parent is not root or child.get("name") not in ("_DAP4_Little_Endian", "_dap4.ce"):
                parent.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def decode_dap4(answer: Answer, url: str) -> dict[str, np.ndarray]:
    """Return the arrays of a data answer of DAP4, each of which has a checksum."""
    from pydap.handlers.dap import UNPACKDAP4DATA
    from webob.response import Response

    try:
        first, length = answer.content[:1], int.from_bytes(answer.content[1:4], "big")
        described = answer.content[4 : 4 + length].decode("utf-8").strip()
        plain = _without_attributes(_without_namespaces(described)).encode()
        content = first + len(plain).to_bytes(3, "big") + plain + answer.content[4 + length :]
        dataset = UNPACKDAP4DATA(Response(body=content, charset="utf-8"), checksums=True).dataset
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
