"""Requests to stop reach whoever can fulfil them."""

from __future__ import annotations

import io

import pytest

from mcrnn.runners.stop_requests import StopRequests
from mcrnn.storage.presence import StopRequest


def test_request_is_fulfilled_although_no_terminal_is_left() -> None:
    closed, stops = io.StringIO(), list[str]()
    closed.close()
    requests = StopRequests("s", lambda line: print(line, file=closed))
    with pytest.raises(ValueError, match="closed file"), requests.handled_by(lambda: stops.append("now")):
        requests.hear(StopRequest("me"))
    assert stops == ["now"]
    with requests.handled_by(lambda: stops.append("later")):  # as one that comes before the first trial
        pass
    assert stops == ["now", "later"]
