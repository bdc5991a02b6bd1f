"""The Ray that a command starts for itself on this machine is closed to everybody else.

It listens on the loopback interface only, and serves only who knows its token, which is a new one each time. Ray's own
defaults are the address of the machine on all interfaces, and a token that lies in the home folder for good.

Ray has no public setting for the first: it listens on loopback on systems where it supports no clusters. Its variable
for that is set here. Ray reads it, and the mode of authentication, when it is imported, so that both are set in Ray
itself, too. `tests/runners/test_own_ray.py` shows for each open port that it holds.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import Any

LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    LOOPBACK_ONLY: "0",
    "RAY_enable_metrics_collection": "0",  # a server of figures that asks for no token
}
NOT_INHERITED = ("MCRNN_MLFLOW_DATABASE",)
"""Variables that Ray's processes do not get: the database of the tracking server, with its password."""


@contextlib.contextmanager
def closed_to_others() -> Iterator[None]:
    """Have a Ray that is started inside the context, and all of its processes, listen on loopback and ask for a token.

    Before and after it, this process may connect to other clusters with the settings of its environment.
    """
    from ray._private import ray_constants

    names = (*SETTINGS, "RAY_AUTH_TOKEN", *NOT_INHERITED)
    before = {name: os.environ.get(name) for name in names}
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    try:
        for name in NOT_INHERITED:
            os.environ.pop(name, None)
        os.environ.update(SETTINGS | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
        ray_constants.ENABLE_RAY_CLUSTER = False
        _read_authentication()
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        _read_authentication()


def _read_authentication() -> None:
    """Let Ray read the mode of authentication and the token from the environment again."""
    from ray import _raylet

    core: Any = _raylet  # compiled, without types
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()
