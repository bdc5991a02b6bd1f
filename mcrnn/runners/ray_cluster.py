"""Connect to Ray: to the cluster that RAY_ADDRESS names, else to one started on this machine for the command.

Ray reads some settings from the environment when it is imported. They are set here, so everything else that uses Ray
comes to it by way of this module, which itself imports Ray only within functions.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

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
SECONDS_FOR_ANSWER = 600.0
"""Longest wait for what machines are asked before work starts."""
SECONDS_BETWEEN_LOOKS = 0.2
"""How long a command waits for tasks before it looks whether it is to stop."""


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


@dataclass(frozen=True)
class Answer:
    """What a machine of the cluster has answered.

    Attributes:
        node: Ray's identifier of the machine.
        address: address of the machine.
        result: what the function has returned; None where it failed.
        problem: why it failed; empty where it did not.
    """

    node: str
    address: str
    result: Any = None
    problem: str = ""


def wait_for_tasks(references: list[Any], check: Callable[[], None], seconds: float = math.inf) -> None:
    """Wait until tasks have ended.

    Args:
        references: the results of the tasks.
        check: called several times a second. If it raises an exception, the tasks are cancelled, and it is passed on.
        seconds: longest wait.
    """
    import ray

    deadline = time.monotonic() + seconds
    pending = references
    try:
        while pending and time.monotonic() < deadline:
            check()
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=SECONDS_BETWEEN_LOOKS)
    except BaseException:
        for each in pending:
            ray.cancel(each, force=True)
        raise


def ask_machines(
    function: Callable[..., Any], *arguments: Any, check: Callable[[], None] = lambda: None
) -> list[Answer]:
    """Call a function once on each machine that has a CPU for tasks, at the same time, whatever else runs there.

    Args:
        function: the function, which may be imported on all machines.
        arguments: its arguments.
        check: called several times a second until the machines have answered; an exception of it ends that.

    Returns:
        The answers, in the order of the addresses; none of a machine that has left the cluster meanwhile.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in _machines_for_tasks()}
    shared = [ray.put(argument) for argument in arguments]
    task: Any = ray.remote(function)
    asked = {}
    for node in addresses:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        asked[node] = task.options(num_cpus=0, scheduling_strategy=strategy).remote(*shared)
    wait_for_tasks(list(asked.values()), check, SECONDS_FOR_ANSWER)
    found = []
    for node, reference in sorted(asked.items(), key=lambda item: addresses[item[0]]):
        try:
            found.append(Answer(node, addresses[node], ray.get(reference, timeout=1)))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            found.append(Answer(node, addresses[node], problem=f"no answer within {SECONDS_FOR_ANSWER / 60:.0f} min"))
        except ray.exceptions.RayError as error:
            if node in {each["NodeID"] for each in _machines_for_tasks()}:
                cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                found.append(Answer(node, addresses[node], problem=first_line(cause)))
    return found


def _machines_for_tasks() -> list[dict[str, Any]]:
    """Return Ray's description of each machine of the cluster that has a CPU for tasks."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
