"""Requests to OPeNDAP servers: which URLs are theirs, answers that are whole, and errors in words of their users."""

from __future__ import annotations

import functools
import re
import threading
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

import requests

from mcrnn.errors import UserError, first_line
from mcrnn.storage.retry import PATIENCE_UNDER_WAY, Outage, ServiceUnavailableError, with_retries

Protocol = Literal["dap2", "dap4"]

WEB_SCHEMES = ("http://", "https://")
PROTOCOL_SCHEMES: dict[str, Protocol] = {"dap2://": "dap2", "dap4://": "dap4"}
"""Schemes that name the version of the protocol, as those of pydap do. The server is asked by https, else by http."""

TIMEOUTS = (10, 120)
"""Seconds to wait for a connection, and for the next bytes of an answer."""

SECONDS_BEFORE_TRIES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Pause before each try of a request. Only what may be temporary is tried again."""

TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
"""Answers after which the same request may succeed."""

SAME_TIME = 1.0
"""Seconds between the time of an answer and its `Last-Modified`, up to which the latter is the time of the answer."""

_outage = Outage(
    "an OPeNDAP server", meanwhile=f"asked again for {PATIENCE_UNDER_WAY / 60:.0f} min", afterwards="work goes on"
)
_of_thread = threading.local()


class NotFoundError(UserError):
    """The server has nothing at an address."""


@dataclass(frozen=True)
class Answer:
    """What a server has answered.

    Attributes:
        content: the body.
        entity_tag: its `ETag`, empty where there is none.
        modified: its `Last-Modified`, empty where there is none, or where it is the time of the answer.
    """

    content: bytes = field(repr=False)
    entity_tag: str = ""
    modified: str = ""

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", "replace")


@dataclass(frozen=True)
class Endpoint:
    """Where a data set of an OPeNDAP server is.

    Attributes:
        address: its URL, to which requests append what they ask for.
        protocol: the version of the protocol.
    """

    address: str
    protocol: Protocol


def find_endpoint(url: str) -> Endpoint | None:
    """Return where an OPeNDAP data set is; None where a URL is that of something else.

    A URL of http or https is one of OPeNDAP where the server answers it with `.dds` appended by the description of a
    data set (DAP2), or with `.dmr` appended (DAP4). Servers of files answer such requests by "404 Not Found".

    Raises:
        UserError: the server is out of reach, or what a scheme names is no OPeNDAP.
    """
    protocol = next((name for scheme, name in PROTOCOL_SCHEMES.items() if url.startswith(scheme)), None)
    if protocol is not None:
        return _endpoint_of_protocol(url, protocol)
    return _asked_endpoint(url) if url.startswith(WEB_SCHEMES) else None


@functools.lru_cache(maxsize=1024)
def _asked_endpoint(url: str) -> Endpoint | None:
    protocols: tuple[Protocol, ...] = ("dap2", "dap4")
    return next((Endpoint(url, protocol) for protocol in protocols if _describes(url, url, protocol)), None)


@functools.lru_cache(maxsize=1024)
def _endpoint_of_protocol(url: str, protocol: Protocol) -> Endpoint:
    rest = url.partition("://")[2]
    address = f"https://{rest}"
    try:
        is_there = _describes(address, url, protocol, tries=1)
    except ServiceUnavailableError:
        address = f"http://{rest}"
        is_there = _describes(address, url, protocol)
    if not is_there:
        raise UserError(f"there is no {protocol.upper()} data set at '{url}'")
    return Endpoint(address, protocol)


def _describes(address: str, url: str, protocol: Protocol, tries: int = len(SECONDS_BEFORE_TRIES)) -> bool:
    """Return whether a server describes a data set at an address."""
    suffix, start = (
        (".dds", rb"\s*Dataset\s*\{") if protocol == "dap2" else (".dmr", rb"\s*(<\?xml[^>]*>)?\s*<Dataset\b")
    )
    try:
        answer = fetch(address + suffix, url, tries)
    except ServiceUnavailableError:
        raise
    except UserError:
        return False
    return re.match(start, answer.content, re.IGNORECASE) is not None


def fetch(address: str, url: str, tries: int = len(SECONDS_BEFORE_TRIES)) -> Answer:
    """Ask a server, and ask again where an error may be temporary.

    Args:
        address: what is asked for.
        url: the source, for messages.
        tries: how often.

    Raises:
        NotFoundError: there is nothing at this address.
        UserError: the server refuses the request.
        ServiceUnavailableError: the server is out of reach, overloaded, or does not answer in full.
    """

    def tried() -> Answer:
        for seconds in SECONDS_BEFORE_TRIES[:tries]:
            time.sleep(seconds)
            try:
                return _fetch_once(address, url)
            except ServiceUnavailableError as error:
                last = error
        raise last

    return with_retries(tried, _outage)


def _fetch_once(address: str, url: str) -> Answer:
    host = urlsplit(address).netloc.rpartition("@")[2]
    try:
        response = _session().get(address, timeout=TIMEOUTS)  # with the whole body, of the length that is announced
    except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
        raise ServiceUnavailableError(
            f"the connection to {host} was closed in the middle of an answer for '{url}'; the same command goes on "
            "when the server and the network work again"
        ) from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        raise ServiceUnavailableError(
            f"cannot reach {host} for '{url}': check the address and the network ({_reason(error)})"
        ) from None
    except requests.RequestException as error:
        raise UserError(f"'{url}' cannot be asked for ({first_line(error)})") from None
    status, reason = response.status_code, server_message(response.content) or response.reason
    if status in (404, 410):
        raise NotFoundError(f"there is no '{url}' on {host} ({status})")
    if status in (401, 403):
        raise UserError(f"{host} refuses '{url}' ({status}: {reason}): a login is taken from ~/.netrc")
    if status in TEMPORARY:
        raise ServiceUnavailableError(
            f"{host} failed {len(SECONDS_BEFORE_TRIES)} times in a row for '{url}' ({status}: {reason}); the same "
            "command goes on when it works again"
        )
    if status != 200:
        raise UserError(f"{host} refuses a request for '{url}' ({status}: {reason})")
    modified = response.headers.get("Last-Modified", "")
    return Answer(
        response.content,
        response.headers.get("ETag", ""),
        "" if _is_time_of_answer(modified, response.headers.get("Date", "")) else modified,
    )


def server_message(content: bytes) -> str:
    """Return the message of an error that a server has sent as DAP2 or DAP4 has them, in one line; empty for others."""
    text = content[:10_000].decode("utf-8", "replace")
    found = re.match(r'\s*Error\s*\{.*?message\s*=\s*"(.*?)"\s*;?\s*\}', text, re.DOTALL) or re.search(
        r"<(?:\w+:)?Error\b.*?<(?:\w+:)?Message>(.*?)</", text, re.DOTALL
    )
    lines = found.group(1).strip().splitlines() if found else []
    return lines[-1].strip()[:200] if lines else ""  # the last one of a traceback is that of its error


def _session() -> requests.Session:
    """Return the session of this thread, which keeps connections open."""
    if not hasattr(_of_thread, "session"):
        _of_thread.session = requests.Session()
    return _of_thread.session


def _reason(error: Exception) -> str:
    """Return why there is no connection, from the end of a chain of errors of urllib3."""
    found = re.findall(r"\[Errno -?\d+\] ([\w ]+)|(timed out)|(certificate verify failed)", str(error))
    return next(filter(None, found[-1])) if found else type(error).__name__


def _is_time_of_answer(modified: str, date: str) -> bool:
    try:
        age = parsedate_to_datetime(date) - parsedate_to_datetime(modified)
    except (TypeError, ValueError):
        return False
    return abs(age.total_seconds()) < SAME_TIME
