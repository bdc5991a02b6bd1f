"""Connect to Ray: to the cluster that RAY_ADDRESS names, else to one started on this machine for the command.

Ray reads some settings from the environment when it is imported. They are set here, so everything else that uses Ray
comes to it by way of this module, which itself imports Ray only within functions.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mcrnn.errors import UserError, first_line
from mcrnn.runners.cluster_size import Cluster, cluster_size
from mcrnn.runners.own_ray import closed_to_others
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location

for _name, _value in (
    ("RAY_AIR_NEW_OUTPUT", "0"),  # the display of a search replaces Tune's tables
    ("TUNE_GLOBAL_CHECKPOINT_S", "inf"),  # no search is restored from Tune's state, which a full disk may not take
    ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),  # the records of runs replace Tune's log files
    ("RAY_ENABLE_AUTO_CONNECT", "0"),  # a thread that outlives the connection starts no other Ray
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_TRAIN_ENABLE_STATE_TRACKING", "0"),
    ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),  # workers without a GPU keep CUDA_VISIBLE_DEVICES as it is
):
    os.environ.setdefault(_name, _value)

WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""Environment variables of workers. Ray runs the training loop in a thread; with an arena of its own for the thread,
glibc gives its memory back to the system after every step, which costs a tenth of the training speed."""
SHARED_STORAGE = "MCRNN_SHARED_STORAGE"
"""Environment variable; 1 says that a local storage root is the same folder on all machines of the cluster."""


@contextmanager
def connected() -> Iterator[Cluster]:
    """Connect to Ray within the context. A connection that is there already is used, and stays.

    The address is always explicit: without one, Ray may attach to any cluster that it finds on the host.

    Yields:
        What the cluster has, and may get.

    Raises:
        UserError: the cluster that RAY_ADDRESS names cannot be reached, or MCRNN_MAX_GPUS is not a number.
    """
    import ray

    if ray.is_initialized():
        yield cluster_size()
        return
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as until_end:
        if not address:
            until_end.enter_context(closed_to_others())
        until_end.callback(ray.shutdown)
        if address:
            _connect(address)
        else:
            _start()
        yield cluster_size()


def _start() -> None:
    """Start a Ray on this machine."""
    import ray

    os.environ.update(WORKER_ENVIRONMENT)  # a Ray started here hands its environment on to its workers
    ray.init("local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, namespace="mcrnn")


def _connect(address: str) -> None:
    """Connect to a cluster.

    Raises:
        UserError: it cannot be reached, or does not accept the token; the message says what to do.
    """
    import ray

    output: list[str] = []
    try:
        with _stderr_captured(output):
            ray.init(
                address,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
                logging_level=logging.ERROR,
                log_to_driver=False,
                namespace="mcrnn",
            )
    except Exception as error:
        text = f"{error}\n{''.join(output)}"
        if any(word in text for word in ("InvalidAuthToken", "Unauthenticated", "AuthenticationError")):
            raise UserError(
                f"the Ray cluster at RAY_ADDRESS {address} does not accept your token: set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN, or put the cluster's token into ~/.ray/auth_token"
            ) from None
        if not isinstance(error, ConnectionError | ValueError | RuntimeError | TimeoutError):
            raise
        reason = first_line(error)
        raise UserError(
            f"the Ray cluster at RAY_ADDRESS {address} cannot be reached ({reason[:200]}); without RAY_ADDRESS the "
            "command starts a Ray of its own on this machine"
        ) from None


@contextmanager
def _stderr_captured(output: list[str]) -> Iterator[None]:
    """Append to a list what is written to stderr, also by Ray's C++ core, a line a second while connecting.

    Only replacing the file descriptor catches what is not written by Python.
    """
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            output.append(file.read())


def check_reach(location: Location, *, tracked: bool = True) -> None:
    """Check, before anything is written, that all machines of the cluster of RAY_ADDRESS can write to a location.

    Args:
        location: where they are to write.
        tracked: whether runs are recorded in MLflow, which all machines must then reach, too.

    Raises:
        UserError: they cannot, or the cluster cannot be reached.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return
    if not ray.is_initialized():
        _connect(address)  # `connected` uses this connection later
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) == 1 and not cluster_size().may_get_machines:
        return
    several = f"the cluster has {len(machines)} machines" if len(machines) > 1 else "the cluster may get more machines"
    if isinstance(location, LocalFolder) and os.environ.get(SHARED_STORAGE) != "1":
        raise UserError(
            f"{several}, which do not see the folder '{location.url}' of this one: set MCRNN_STORAGE to "
            f"s3://BUCKET/PREFIX, or {SHARED_STORAGE}=1 where it is the same folder on all of them"
        )
    if tracked and not isinstance(location, LocalFolder) and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"{several}, and MLFLOW_TRACKING_URI names no server for its runs: start one with "
            "cluster/mlflow_server.py, or set MLFLOW_TRACKING_URI to a database of your own"
        )
