"""What the training loop asks of the place where it runs."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

OBJECTIVE = "rmse_closed_loop_normalized"
"""what a search minimises: the closed-loop RMSE of the validation over the store's training deviation"""
PENALTY = 10.0
"""the objective of a run whose loss is not a number, and the largest that is reported: ten deviations"""

Metrics = dict[str, float]
State = dict[str, Any]
"""of a training: model, optimizer, average, epoch, batch (of the epoch that has begun, else 0), sums, history, best"""


class Request(enum.IntEnum):
    """What a session asks of the loop between two steps."""

    NOTHING = 0
    CHECKPOINT = 1
    STOP = 2


class End(enum.StrEnum):
    """How a training ended."""

    FINISHED = "finished"
    STOPPED_EARLY = "stopped early"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"
    OUT_OF_MEMORY = "out of memory"


class Session(Protocol):
    """Whatever runs the loop: a plain process, a Tune trial, a Ray Train worker."""

    rank: int
    world_size: int

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        """Take the metrics of an epoch and the state after it, or the state within an epoch. Called on every rank."""

    def load_checkpoint(self) -> State | None:
        """The state to start from, None for the beginning."""

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        """Called after every step of an epoch, whose batches count from 1."""


@dataclass
class CallbackSession:
    """A session of one process that hands each report to a function."""

    on_report: Callable[[Metrics, State], None]
    checkpoint: State | None = None
    rank: int = 0
    world_size: int = 1

    def report(self, metrics: Metrics | None, checkpoint: State) -> None:
        if metrics is not None:
            self.on_report(metrics, checkpoint)

    def load_checkpoint(self) -> State | None:
        return self.checkpoint

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        return Request.NOTHING


def evaluated_weights(state: State) -> dict[str, torch.Tensor]:
    """The weights of a state that were validated: the averaged ones where there are such."""
    if state["average"] is None:
        return state["model"]
    start = "module."
    return {name.removeprefix(start): w for name, w in state["average"].items() if name.startswith(start)}
