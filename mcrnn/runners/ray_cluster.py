"""Connect to Ray: the cluster that RAY_ADDRESS names, else one of our own on this machine."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mcrnn.config.sections import TrainConfig
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location

# Tune's own tables and per-trial loggers: ours replace them
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

WORKERS = {"MALLOC_ARENA_MAX": "1"}
"""of the environment of workers, where the loop runs in a thread, whose memory glibc would otherwise give back to the
system after every step: a tenth of the speed of training"""


SHARED = "MCRNN_SHARED_STORAGE"
"""set to 1 where a local root is the same folder on all machines of a cluster"""


@dataclass(frozen=True)
class Resources:
    """What a cluster has, or may have once it has grown."""

    cpus: int
    gpus: float


@contextmanager
def connected() -> Iterator[Resources]:
    """Ray for the length of a command.

    The address is explicit in both cases: left open, Ray may attach to any cluster that it finds on the host.

    Raises:
        UserError: the cluster that RAY_ADDRESS names cannot be reached.
    """
    import ray

    if ray.is_initialized():
        yield _resources()
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _connect(address)
    else:
        os.environ.update(WORKERS)  # which a Ray of our own hands on
        ray.init("local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, namespace="mcrnn")
    try:
        yield _resources()
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    import ray

    said: list[str] = []
    try:
        with _stderr_kept(said):
            ray.init(
                address,
                runtime_env={"env_vars": WORKERS},
                logging_level=logging.ERROR,
                log_to_driver=False,
                namespace="mcrnn",
            )
    except Exception as error:
        text = f"{error}\n{''.join(said)}"
        if any(word in text for word in ("InvalidAuthToken", "Unauthenticated", "AuthenticationError")):
            raise UserError(
                f"the Ray cluster at RAY_ADDRESS {address} does not accept your token: set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN, or put the cluster's token into ~/.ray/auth_token"
            ) from None
        if not isinstance(error, ConnectionError | ValueError | RuntimeError | TimeoutError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the Ray cluster at RAY_ADDRESS {address} cannot be reached ({reason[:200]}); without RAY_ADDRESS the "
            "command starts a Ray of its own on this machine"
        ) from None


@contextmanager
def _stderr_kept(said: list[str]) -> Iterator[None]:
    """Keep what Ray's core writes to stderr while it tries to connect: a line a second, more than a user needs."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            kept.seek(0)
            said.append(kept.read())


def _resources() -> Resources:
    import ray

    there, may_be = ray.cluster_resources(), _grown() or {}
    cpus, gpus = (max(there.get(kind, 0), may_be.get(kind, 0)) for kind in ("CPU", "GPU"))
    return Resources(max(1, int(cpus)), float(gpus))


def _grown() -> dict[str, int] | None:
    """The resources of a cluster with all nodes that its autoscaler may start, None where it has no autoscaler."""
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config()


def check_reach(place: Location, *, tracked: bool = True) -> None:
    """Whether all machines of the cluster that RAY_ADDRESS names reach a place, before anything is written there.

    Args:
        place: where they are to write.
        tracked: whether MLflow is to record it.

    Raises:
        UserError: they do not, or it would be recorded on one of them only; or the cluster cannot be reached.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return
    if not ray.is_initialized():
        _connect(address)  # which `connected` then uses
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) == 1 and _grown() is None:
        return
    several = f"the cluster has {len(machines)} machines" if len(machines) > 1 else "the cluster may get more machines"
    if isinstance(place, LocalFolder) and os.environ.get(SHARED) != "1":
        raise UserError(
            f"{several}, which do not see the folder '{place.url}' of this one: set MCRNN_STORAGE to "
            f"s3://BUCKET/PREFIX, or {SHARED}=1 where it is the same folder on all of them"
        )
    if tracked and not isinstance(place, LocalFolder) and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"{several}, and MLFLOW_TRACKING_URI names no server for its runs: start one with "
            "cluster/mlflow_server.py, or set MLFLOW_TRACKING_URI to a database of your own"
        )


def gpus_for(train: TrainConfig, in_cluster: float, each: float | None = None) -> float:
    """GPUs for each worker: as given, else one where there are enough for all.

    Raises:
        UserError: GPUs are asked for and there are too few.
    """
    if train.device == "cpu":
        return 0.0
    wanted = 1.0 if each is None else each
    if wanted * train.workers <= in_cluster:
        return wanted
    if each or train.device == "cuda":
        raise UserError(f"{train.workers} workers need {wanted * train.workers:g} GPUs, the cluster has {in_cluster:g}")
    return 0.0
