"""Which URLs are those of OPeNDAP data sets: what the server tells when it is asked for a description."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from data_prep.opendap_requests import LoginError, OverloadedError, fetch, host_of, is_there
from mcrnn.errors import UserError
from mcrnn.storage.retry import ServiceUnavailableError

Protocol = Literal["dap2", "dap4"]

WEB_SCHEMES = ("http://", "https://")
PROTOCOL_SCHEMES: dict[str, Protocol] = {"dap2://": "dap2", "dap4://": "dap4"}
"""Schemes that name the version of the protocol, as those of pydap do. The server is asked by https, else by http."""

DESCRIPTIONS: dict[Protocol, tuple[str, bytes]] = {
    "dap2": (".dds", rb"\s*Dataset\s*\{"),
    "dap4": (".dmr", rb"\s*(<\?xml[^>]*>)?\s*<Dataset\b"),
}
"""What is appended to a URL to ask for a description, and a pattern of how the answer begins."""

START_BYTES = 1000
"""How much of an answer is read to find out whether it is a description. It may be a file of any size."""

ZARR_OBJECTS = ("/zarr.json", "/.zmetadata", "/.zgroup")
"""Of these, at least one is below the URL of a Zarr store."""


@dataclass(frozen=True)
class Endpoint:
    """Where a data set of an OPeNDAP server is.

    Attributes:
        address: its URL, to which requests append what they ask for.
        protocol: the version of the protocol.
    """

    address: str
    protocol: Protocol


@dataclass(frozen=True)
class _Finding:
    """What a server has told: an endpoint; else that it asks for a login, or a hint why there is none."""

    endpoint: Endpoint | None
    login: str = ""
    hint: str = ""


def find_endpoint(url: str) -> Endpoint | None:
    """Return where an OPeNDAP data set is; None where a URL is that of something else.

    A URL of http or https is one of OPeNDAP where the server answers it with `.dds` appended by the description of a
    data set (DAP2), or with `.dmr` appended (DAP4). Servers of files answer such requests by "404 Not Found", or
    fail for them and have a file at the URL itself. A URL with a `?` is none.

    Raises:
        UserError: the server is out of reach, or what a scheme names is no OPeNDAP.
    """
    protocol = next((name for scheme, name in PROTOCOL_SCHEMES.items() if url.startswith(scheme)), None)
    if protocol is not None:
        return _endpoint_of_protocol(url, protocol)
    return _ask(url).endpoint if _may_be_asked(url) else None


def describe_failure(url: str, message: str, error: Exception) -> str:
    """Return why a URL cannot be opened as a file or a Zarr store, in view of what the server has told before.

    Args:
        url: the URL; of other sources the message is returned as it is.
        message: what the error alone says.
        error: why it cannot be opened.
    """
    if not _may_be_asked(url):
        return message
    finding = _ask(url)
    if finding.login and (isinstance(error, FileNotFoundError) or getattr(error, "status", None) in (401, 403)):
        return finding.login
    return f"{message}; {finding.hint}" if finding.hint else message


def _may_be_asked(url: str) -> bool:
    return url.startswith(WEB_SCHEMES) and "?" not in url


@functools.lru_cache(maxsize=1024)
def _ask(url: str) -> _Finding:
    login = hint = ""
    if url.lower().endswith(".html"):
        hint = "where it is a server's page about a data set, leave out '.html'"
    for protocol in DESCRIPTIONS:
        try:
            start = _ask_briefly(url, protocol)
        except LoginError as error:
            login = login or str(error)
            continue
        except ServiceUnavailableError:
            raise
        except UserError:
            continue
        if start is None:
            break
        if re.match(DESCRIPTIONS[protocol][1], start, re.IGNORECASE):
            return _Finding(Endpoint(url, protocol))
        if re.match(rb"\s*(<!doctype html|<html)", start, re.IGNORECASE):
            page = f"{host_of(url)} answers by a web page: where that asks for a login, write it to ~/.netrc"
            hint = hint or page
    return _Finding(None, login, hint)


def _ask_briefly(url: str, protocol: Protocol) -> bytes | None:
    """Return the start of an answer; None where a server fails for this address, and has a file or a Zarr store."""
    address = url + DESCRIPTIONS[protocol][0]
    attempts: tuple[tuple[int | None, tuple[str, ...]], ...] = ((2, ("",)), (None, ZARR_OBJECTS))
    for tries, names in attempts:
        try:
            return fetch(address, url, tries, START_BYTES).content
        except OverloadedError:
            if any(is_there(url + name) for name in names):
                return None
        except ServiceUnavailableError:
            pass
    return fetch(address, url, 1, START_BYTES).content


@functools.lru_cache(maxsize=1024)
def _endpoint_of_protocol(url: str, protocol: Protocol) -> Endpoint:
    rest = url.partition("://")[2]
    suffix, pattern = DESCRIPTIONS[protocol]
    try:
        address = f"https://{rest}"
        try:
            answer = fetch(address + suffix, url, tries=1, most=START_BYTES)
        except ServiceUnavailableError:
            address = f"http://{rest}"
            answer = fetch(address + suffix, url, most=START_BYTES)
        is_description = re.match(pattern, answer.content, re.IGNORECASE) is not None
    except (LoginError, ServiceUnavailableError):
        raise
    except UserError:
        is_description = False
    if not is_description:
        raise UserError(f"there is no {protocol.upper()} data set at '{url}'")
    return Endpoint(address, protocol)
