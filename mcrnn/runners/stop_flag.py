"""Asking the workers of a training to stop, through a Ray actor."""

from __future__ import annotations

import time
from typing import Any

SECONDS_BETWEEN_QUESTIONS = 1.0
"""of a worker to its driver, whether to stop"""


class StopFlag:
    """A Ray actor through which the driver asks its workers to stop: all of them, or those of one training."""

    def __init__(self) -> None:
        self._requested = False
        self._ended: dict[str, int] = {}

    def request(self) -> None:
        """Stop all; they go on when the command is given again."""
        self._requested = True

    def end(self, name: str, epoch: int) -> None:
        """Stop a training for good, by what it was after an epoch."""
        self._ended[name] = epoch

    def requested(self, name: str) -> bool:
        """Whether a training is to stop."""
        return self._requested or name in self._ended

    def ended_at(self, name: str) -> int | None:
        """The epoch by which a training was ended, None where it was not."""
        return self._ended.get(name)


def new_stop_flag() -> Any:
    """A `StopFlag` on the node of this process, so that it is lost only with the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(StopFlag).remote()  # type: ignore[call-overload]


class StopPoll:
    """Asks a `StopFlag` now and then, without waiting for its answer."""

    def __init__(self, flag: Any, name: str) -> None:
        self._flag, self._name, self._asked, self._answer = flag, name, 0.0, None

    def __call__(self) -> bool:
        import ray

        if self._flag is None:
            return False
        if self._answer is None and time.monotonic() - self._asked > SECONDS_BETWEEN_QUESTIONS:
            self._asked, self._answer = time.monotonic(), self._flag.requested.remote(self._name)
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return False
        requested, self._answer = ray.get(self._answer), None
        return requested
