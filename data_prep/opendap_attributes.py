"""Attributes as OPeNDAP servers write them: texts of a type. What no program can read is left out, or named.

Servers differ: negative numbers stand for bytes, which DAP2 has without a sign only, and numbers have the endings that
they have in CDL. Source: https://docs.unidata.ucar.edu/nug/current/_c_d_l.html.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUMBERS = {
    "byte": "u1",
    "ubyte": "u1",
    "char": "u1",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "int64": "i8",
    "uint64": "u8",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
"""Types of DAP2 and DAP4 in lower case, and those of NumPy. A byte has no sign in both protocols."""

TEXTS = ("string", "url", "uri")

NEEDED = {"_FillValue", "missing_value", "scale_factor", "add_offset", "units"}
"""Attributes without which values mean something else; so do those whose names begin with `valid_`."""

_ENDING_OF_CDL = re.compile(r"(?<=[\d.])(ull|ub|us|ul|ll|[bsulfd])$", re.IGNORECASE)


@dataclass(frozen=True)
class Unreadable:
    """An attribute that cannot be read: the type that a server says, and the values."""

    kind: str
    texts: tuple[str, ...]


def read_attribute(kind: str, texts: Sequence[str]) -> Any:
    """Return the values of an attribute: text, or numbers of the type that the server says; one alone without a list.

    Negative values of a type without sign are numbers of the type of the same width with a sign.

    Args:
        kind: the type.
        texts: the values.
    """
    if kind.lower() in TEXTS:
        return texts[0] if len(texts) == 1 else list(texts) or ""
    try:
        return _numbers(texts, np.dtype(NUMBERS[kind.lower()]))
    except (KeyError, ValueError, OverflowError):
        return Unreadable(kind, tuple(texts))


def _numbers(texts: Sequence[str], dtype: np.dtype) -> Any:
    if not texts:
        raise ValueError
    if dtype.kind == "f":
        values: Any = np.array([float(_plain(text)) for text in texts]).astype(dtype)
    else:
        whole = [_whole_number(text) for text in texts]
        if min(whole) < 0 and dtype.kind == "u":
            dtype = np.dtype(f"i{dtype.itemsize}")
        elif max(whole) > np.iinfo(dtype).max and dtype.kind == "i":  # the bits of a number without sign
            whole = [np.array(number, f"u{dtype.itemsize}").view(dtype).item() for number in whole]
        values = np.array(whole, dtype)
    return values[0] if len(values) == 1 else values


def _plain(text: str) -> str:
    return _ENDING_OF_CDL.sub("", text.strip())


def _whole_number(text: str) -> int:
    if text.strip().lower().startswith(("0x", "-0x")):
        return int(text, 16)
    try:
        return int(_plain(text))
    except ValueError:
        if not float(_plain(text)).is_integer():
            raise
        return int(float(_plain(text)))


def read_with_sign(
    name: str, dtype: np.dtype, attributes: dict[str, Any], has_signed_bytes: bool
) -> tuple[np.dtype, dict[str, Any]]:
    """Return the type of a variable's values, and attributes that can be read. Fill values and ranges have its sign.

    Bytes have a sign where the attribute `_Unsigned` is "false". Where it is missing, and the protocol has no type for
    bytes with a sign, they have one if fill values and ranges hold a number from -128 to -1, and none from 128 to 255.
    Source: https://docs.unidata.ucar.edu/nug/current/best_practices.html.

    Args:
        name: its name, for messages.
        dtype: the type that the server says.
        attributes: its attributes as `read_attribute` returns them.
        has_signed_bytes: whether the protocol has a type for bytes with a sign.

    Raises:
        ValueError: an attribute cannot be read without which values mean something else.
    """
    found = {}
    for key, value in attributes.items():
        if not isinstance(value, Unreadable):
            found[key] = value
        elif key in NEEDED or key.startswith("valid_"):
            raise ValueError(
                f"the attribute {key} of {name} cannot be read: {value.kind} {', '.join(value.texts)}".rstrip()
            )
    if dtype.kind != "u":
        return dtype, found
    packed = {key: value for key, value in found.items() if _is_packed(key) and _is_whole(value)}
    if dtype.itemsize == 1 and _is_signed(found.get("_Unsigned"), list(packed.values()), has_signed_bytes):
        dtype = np.dtype(np.int8)
        found.pop("_Unsigned", None)
    return dtype, found | {key: v.view(dtype) for key, v in packed.items() if v.dtype.itemsize == dtype.itemsize}


def _is_signed(unsigned: Any, packed: list[Any], has_signed_bytes: bool) -> bool:
    """Return whether bytes have a sign, by `_Unsigned` where it is there, else by fill values and ranges."""
    if unsigned is not None or has_signed_bytes:
        return str(unsigned).lower() == "false"
    numbers = np.array([number for value in packed for number in np.ravel(value).tolist()])
    is_negative, is_large = (numbers >= -128) & (numbers < 0), (numbers > 127) & (numbers < 256)
    return bool(is_negative.any() and not is_large.any())


def _is_packed(key: str) -> bool:
    """Return whether an attribute holds numbers as they are stored, before scale factor and offset apply."""
    return key in ("_FillValue", "missing_value") or key.startswith("valid_")


def _is_whole(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iu"
