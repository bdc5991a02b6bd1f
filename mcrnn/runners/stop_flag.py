"""Asking the workers of a training to stop, through a Ray actor."""

from __future__ import annotations

import time
from typing import Any

SECONDS_BETWEEN_POLLS = 1.0
"""Time between two questions of a worker to the flag."""


class StopFlag:
    """A Ray actor by which the driver asks its workers to stop: all of them, or those of one training."""

    def __init__(self) -> None:
        self._requested = False
        self._ended: dict[str, int] = {}
        self._stopped: set[str] = set()

    def request(self) -> None:
        """Ask all trainings to stop after a checkpoint. They go on when the command is given again."""
        self._requested = True

    def end(self, name: str, epoch: int) -> None:
        """Ask one training to stop for good.

        Args:
            name: name of its run.
            epoch: the epoch whose metrics are its result; workers may be further when they hear of it.
        """
        self._ended[name] = epoch

    def stop(self, name: str) -> None:
        """Ask one training to stop for good, with the epochs that it has recorded by then as its result."""
        self._stopped.add(name)

    def requested(self, name: str) -> bool:
        """Return whether a training should stop, for whatever reason."""
        return self._requested or name in self._ended or name in self._stopped

    def is_stopped(self, name: str) -> bool:
        """Return whether a training was asked to stop for good by `stop`."""
        return name in self._stopped

    def ended_at(self, name: str) -> int | None:
        """Return the epoch whose metrics are the result of a training that was ended, None for others."""
        return self._ended.get(name)


def new_stop_flag() -> Any:
    """Start a `StopFlag` on the node of this process, so that it is lost only together with the driver.

    Returns:
        The handle of the actor.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(StopFlag).remote()  # type: ignore[call-overload]


class StopPoll:
    """Asks a `StopFlag` once a second, without ever waiting for its answer.

    Args:
        flag: handle of the `StopFlag`; None is never asked.
        name: name of the training's run.
    """

    def __init__(self, flag: Any, name: str) -> None:
        self._flag, self._name = flag, name
        self._asked_at = 0.0
        self._answer: Any = None
        """The answer that Ray is to deliver, None where no question is under way."""

    def __call__(self) -> bool:
        """Return whether a stop was asked for, as far as the answers that have come say."""
        import ray

        if self._flag is None:
            return False
        if self._answer is None and time.monotonic() - self._asked_at > SECONDS_BETWEEN_POLLS:
            self._asked_at, self._answer = time.monotonic(), self._flag.requested.remote(self._name)
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return False
        requested, self._answer = ray.get(self._answer), None
        return requested
