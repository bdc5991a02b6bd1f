"""Requests to OPeNDAP servers: answers that are whole, and errors in words of their users."""

from __future__ import annotations

import math
import re
import threading
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mcrnn.errors import UserError, first_line
from mcrnn.storage.retry import ServiceUnavailableError

if TYPE_CHECKING:
    import requests

TIMEOUTS = (10, 120)
"""Seconds to wait for a connection, and for the next bytes of an answer."""

SECONDS_BEFORE_TRIES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Pause before each try of a request. Only what may be temporary is tried again."""

TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
"""Answers after which the same request may succeed."""

_of_thread = threading.local()


class NotFoundError(UserError):
    """The server has nothing at an address."""


class LoginError(UserError):
    """The server refuses an address to whoever has not logged in, or may not read it."""


class OverloadedError(ServiceUnavailableError):
    """The server answers that it fails, perhaps for a while."""


@dataclass(frozen=True)
class Answer:
    """What a server has answered.

    Attributes:
        content: the body.
        entity_tag: its `ETag`, empty where there is none.
        modified: its `Last-Modified`, empty where there is none.
        date: its `Date`, empty where there is none.
    """

    content: bytes = field(repr=False)
    entity_tag: str = ""
    modified: str = ""
    date: str = ""

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", "replace")

    @property
    def age(self) -> float:
        """Seconds between `modified` and `date`; infinite where one of them is unknown."""
        try:
            return (parsedate_to_datetime(self.date) - parsedate_to_datetime(self.modified)).total_seconds()
        except (TypeError, ValueError):
            return math.inf


def fetch(address: str, url: str, tries: int | None = None, most: int | None = None) -> Answer:
    """Ask a server, and ask again where an error may be temporary.

    Args:
        address: what is asked for.
        url: the source, for messages.
        tries: how often; None for as often as `SECONDS_BEFORE_TRIES` says.
        most: bytes of the answer that are read; None for all.

    Raises:
        NotFoundError: there is nothing at this address.
        LoginError: it is not for whoever asks.
        UserError: the server refuses the request.
        ServiceUnavailableError: the server is out of reach, overloaded, or does not answer in full.
    """
    for seconds in SECONDS_BEFORE_TRIES[:tries]:
        time.sleep(seconds)
        try:
            return _fetch_once(address, url, most)
        except ServiceUnavailableError as error:
            last = error
    raise last


def is_there(address: str) -> bool:
    """Return whether a server has something other than a web page at an address, of which nothing is read."""
    import requests

    try:
        response = _session().head(address, timeout=TIMEOUTS, allow_redirects=True)
        if response.status_code in (405, 501):
            response = _session().get(address, timeout=TIMEOUTS, stream=True)
            response.close()
    except requests.RequestException:
        return False
    return response.status_code == 200 and "html" not in response.headers.get("Content-Type", "")


def host_of(address: str) -> str:
    """Return host and port of an address, without a login."""
    return urlsplit(address).netloc.rpartition("@")[2]


def _fetch_once(address: str, url: str, most: int | None) -> Answer:
    import requests

    host = host_of(address)
    try:
        response = _session().get(address, timeout=TIMEOUTS, stream=most is not None)
        # The whole body is of the length that is announced.
        content = response.content if most is None else _start_of(response, most)
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
    status, reason = response.status_code, server_message(content) or response.reason
    if status in (404, 410):
        raise NotFoundError(f"there is no '{url}' on {host} ({status})")
    if status == 401:
        raise LoginError(f"{host} asks for a login for '{url}' (401): write it to ~/.netrc")
    if status == 403:
        raise LoginError(f"{host} refuses '{url}' ({status}: {reason}): a login is taken from ~/.netrc")
    if status in TEMPORARY:
        raise OverloadedError(
            f"{host} fails for '{url}' ({status}: {reason}); the same command goes on when it works again"
        )
    if status != 200:
        raise UserError(f"{host} refuses a request for '{url}' ({status}: {reason})")
    headers = response.headers
    return Answer(content, headers.get("ETag", ""), headers.get("Last-Modified", ""), headers.get("Date", ""))


def _start_of(response: requests.Response, most: int) -> bytes:
    content = b""
    with response:
        for part in response.iter_content(most):
            content += part
            if len(content) >= most:
                break
    return content


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
    import requests

    if not hasattr(_of_thread, "session"):
        _of_thread.session = requests.Session()
    return _of_thread.session


def _reason(error: Exception) -> str:
    """Return why there is no connection, from the end of a chain of errors of urllib3."""
    found = re.findall(r"\[Errno -?\d+\] ([\w ]+)|(timed out)|(certificate verify failed)", str(error))
    return next(filter(None, found[-1])) if found else type(error).__name__
