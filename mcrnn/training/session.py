"""The protocol between the training loop and what runs it: reports, checkpoints, and requests to stop."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

OBJECTIVE = "rmse_closed_loop_normalized"
"""The metric that a search minimises: closed-loop validation RMSE over the training split's standard deviation."""
PENALTY = 10.0
"""The objective of a run that has diverged, and the largest that is reported: ten standard deviations."""

Metrics = dict[str, float]
"""Metrics of one epoch, by name."""
State = dict[str, Any]
"""A checkpoint of a training: model, optimizer, average (of the weights), epoch (the next, or the one that has been
started), batch (steps of it that have been taken), sums (of these steps, by rank), history (metrics of all epochs) and
best (objective)."""


class Request(enum.IntEnum):
    """A request of the session to the loop, made between two steps; a stop includes a checkpoint."""

    NOTHING = 0
    CHECKPOINT = 1
    STOP = 2


class End(enum.StrEnum):
    """How a training ended."""

    FINISHED = "finished"
    STOPPED_EARLY = "stopped early"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"
    PAUSED = "paused"
    """It has reached the epoch that it was to be trained to, and goes on from its checkpoint if it is worth it."""
    OUT_OF_MEMORY = "out of memory"


class Session(Protocol):
    """Whatever runs the loop: a plain process, a Tune trial, a Ray Train worker."""

    rank: int
    world_size: int

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        """Take the metrics of an epoch and the state after it, or None and a state within an epoch.

        Called on every rank.
        """

    def load_checkpoint(self) -> State | None:
        """Return the state to start from, None to start from the beginning."""

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        """Return what the loop shall do. Called after every step.

        Args:
            epoch: number of the epoch, from 1.
            batch: number of the step in it, from 1.
            batches: steps of an epoch.
        """

    def warn(self, line: str) -> None:
        """Take a line for the user, such as why something that was configured is not used."""


@dataclass
class CallbackSession:
    """A session that passes the report of each epoch to a function, and requests nothing."""

    on_report: Callable[[Metrics, State], None]
    """Takes the metrics and the state after each epoch."""
    checkpoint: State | None = None
    """The state to start from."""
    rank: int = 0
    """Number of this worker, from 0."""
    world_size: int = 1
    """Number of workers."""

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        if metrics is not None:
            self.on_report(metrics, checkpoint)

    def load_checkpoint(self) -> State | None:
        return self.checkpoint

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        return Request.NOTHING

    def warn(self, line: str) -> None:
        warnings.warn(line, stacklevel=2)


def evaluated_weights(state: State) -> dict[str, torch.Tensor]:
    """Return the weights of a state that were validated: the averaged ones if the weights are averaged."""
    if state["average"] is None:
        return state["model"]
    prefix = "module."  # of AveragedModel, which also keeps a counter
    return {name.removeprefix(prefix): w for name, w in state["average"].items() if name.startswith(prefix)}
