"""The replicas that compute forecasts: a deployment of Ray Serve.

A replica knows no registry. Each request brings a reference to its model in Ray's object store, so that all replicas
serve the version that the gateway has decided on, also one that Ray has just started in place of another. Requests
that arrive together are computed together.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from ray import serve

from mcrnn.device import choose_device
from mcrnn.models.trained_model import TrainedModel
from mcrnn.serving.work import Work, joined_inputs

LARGEST_BATCH = 32
"""Requests that are computed together at most, and windows of a request that are."""
SECONDS_TO_WAIT = 0.002
"""Time that a request waits for others to be computed with."""
WAITING_REQUESTS = 1_000
"""Requests that a replica takes before others are chosen."""
KEPT_MODELS = 2
"""Models that a replica keeps: the one in use, and the one before it, whose requests are still under way."""


class Replica:
    """Computes forecasts on one thread, or on a GPU if Ray has assigned one."""

    def __init__(self) -> None:
        open_no_port()
        torch.set_num_threads(1)
        self.device = choose_device(None, "")
        self.models: OrderedDict[str, TrainedModel] = OrderedDict()

    @serve.batch(max_batch_size=LARGEST_BATCH, batch_wait_timeout_s=SECONDS_TO_WAIT)
    async def forecast(self, requests: list[Work]) -> list[np.ndarray]:
        """Compute requests that have arrived together.

        Returns:
            The forecasts of each, float32 (B, steps, C, H, W).
        """
        return await asyncio.to_thread(self._compute, requests)

    async def is_ready(self) -> bool:
        """Return True: the replica answers."""
        return True

    def _compute(self, requests: list[Work]) -> list[np.ndarray]:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, work in enumerate(requests):
            groups.setdefault((work.digest, *work.frames_BTCHW.shape[1:]), []).append(index)
        results: list[np.ndarray] = [np.empty(0)] * len(requests)
        for members in groups.values():
            model = self._model(requests[members[0]])
            steps = max(requests[index].steps for index in members)
            frames_BTCHW = np.concatenate([requests[index].frames_BTCHW for index in members])
            inputs_BTIHW = joined_inputs([requests[index] for index in members], steps)
            count = -(-len(frames_BTCHW) // LARGEST_BATCH)
            ahead: Any = [None] * count if inputs_BTIHW is None else np.array_split(inputs_BTIHW, count)
            parts = zip(np.array_split(frames_BTCHW, count), ahead, strict=True)
            forecasts_BTCHW = np.concatenate([model.predict(part, steps, inputs=inputs) for part, inputs in parts])
            ends = np.cumsum([len(requests[index].frames_BTCHW) for index in members])
            for index, forecast_BTCHW in zip(members, np.split(forecasts_BTCHW, ends[:-1]), strict=True):
                results[index] = forecast_BTCHW[:, : requests[index].steps]
        return results

    def _model(self, work: Work) -> TrainedModel:
        import ray

        if work.digest not in self.models:
            model: TrainedModel = ray.get(work.reference[0])
            model.network.to(self.device)
            self.models[work.digest] = model
            while len(self.models) > KEPT_MODELS:
                self.models.popitem(last=False)
        self.models.move_to_end(work.digest)
        return self.models[work.digest]


def open_no_port() -> None:
    """Keep Ray Serve from opening a port in this process, a replica, which has not opened it yet.

    It would listen on all interfaces, ask for no token, and unpickle what it is sent, which runs any code. Handles use
    it only where RAY_SERVE_USE_GRPC_BY_DEFAULT is set. Ray has no setting for it. `tests/integration/test_serving.py`
    shows that no port is open.

    Raises:
        RuntimeError: this version of Ray opens the port in another way.
    """
    from ray.serve._private import replica

    if not hasattr(replica, "add_port_to_grpc_server"):
        raise RuntimeError("this version of Ray Serve opens a port that cannot be closed: install ray 2.60")
    replica.add_port_to_grpc_server = lambda server, address: 0


def application(replicas: int, gpus: float) -> serve.Application:
    """Return the deployment as an application of Ray Serve.

    Args:
        replicas: number of replicas.
        gpus: GPUs, or share of one, that each replica gets.
    """
    deployment = serve.deployment(Replica).options(  # type: ignore[attr-defined]
        num_replicas=replicas,
        max_ongoing_requests=WAITING_REQUESTS,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        health_check_period_s=2,
    )
    return deployment.bind()
