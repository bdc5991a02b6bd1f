"""Connect to Ray: the cluster that RAY_ADDRESS names, else one of our own on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Tune's own tables and per-trial loggers: ours replace them
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

WORKERS = {"MALLOC_ARENA_MAX": "1"}
"""of the environment of workers, where the loop runs in a thread, whose memory glibc would otherwise give back to the
system after every step: a tenth of the speed of training"""


@contextmanager
def connected() -> Iterator[int]:
    """Ray for the length of a command; yields the number of CPUs of the cluster.

    The address is explicit in both cases: left open, Ray may attach to any cluster that it finds on the host.
    """
    import ray

    if ray.is_initialized():
        yield int(ray.cluster_resources().get("CPU", 1))
        return
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.update(WORKERS)  # which a Ray of our own hands on
    ray.init(
        address=address or "local",
        runtime_env={"env_vars": WORKERS} if address else None,
        include_dashboard=None if address else False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        namespace="mcrnn",
    )
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()
