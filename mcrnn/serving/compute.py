"""From the gateway to the replicas: a request whose replica is lost is computed by another one."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mcrnn.errors import UserError
from mcrnn.runners.cluster_size import Cluster
from mcrnn.serving.served_model import ServedModel
from mcrnn.serving.work import Work

PATIENCE = 60.0
"""Seconds for which a request is tried again while replicas are lost."""
SECONDS_BETWEEN_TRIES = 0.1


class NoReplicaError(Exception):
    """No replica has answered for `PATIENCE` seconds."""


class Replicas:
    """The replicas on Ray Serve.

    Args:
        handle: handle of the deployment.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    async def forecast(
        self, served: ServedModel, frames_BTCHW: np.ndarray, steps: int, inputs_BTIHW: np.ndarray | None = None
    ) -> np.ndarray:
        """Compute forecasts.

        A forecast depends on the request alone, so it can be computed again without harm.

        Args:
            served: the model.
            frames_BTCHW: the given frames, float32, on the model's grid.
            steps: number of lead times.
            inputs_BTIHW: the channels that are inputs only, at lead times 1 .. steps - 1; None where there is none.

        Returns:
            float32 (B, steps, C, H, W).

        Raises:
            NoReplicaError: all replicas stay away.
        """
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import RayServeException

        work = Work(served.identity["model_digest"], [served.reference], frames_BTCHW, steps, inputs_BTIHW)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return await self.handle.forecast.remote(work)
            except (RayActorError, RayServeException) as error:
                if time.monotonic() > deadline:
                    raise NoReplicaError(str(error)) from None
            await asyncio.sleep(SECONDS_BETWEEN_TRIES)

    async def are_ready(self, seconds: float = 5.0) -> bool:
        """Return whether a replica answers."""
        try:
            return await asyncio.wait_for(self._ask(), seconds)
        except Exception:  # whatever Ray says: it does not answer
            return False

    async def _ask(self) -> bool:
        return await self.handle.is_ready.remote()


@contextmanager
def started(name: str, replicas: int, cluster: Cluster) -> Iterator[Replicas]:
    """Start replicas on the Ray that this process is connected to; they end with the context.

    Args:
        name: name of the application, which no other on this Ray has.
        replicas: number of replicas.
        cluster: what the Ray has.

    Raises:
        UserError: there are fewer CPUs than replicas, or Ray Serve is not installed.
    """
    if replicas > cluster.cpus:
        raise UserError(f"--replicas {replicas} needs as many CPUs, there are {cluster.cpus}")
    from ray import serve

    from mcrnn.serving.replicas import application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    gpus = min(1.0, cluster.gpus / replicas)
    serve.start(http_options={"location": "NoServer"})  # the gateway is the only server
    handle = serve.run(application(replicas, gpus), name=name, route_prefix=None)
    try:
        yield Replicas(handle)
    finally:
        if os.environ.get("RAY_ADDRESS"):  # a Ray that was started for this command ends with it
            serve.delete(name)
