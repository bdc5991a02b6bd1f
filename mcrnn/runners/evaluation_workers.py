"""Score the parts of an evaluation on workers of Ray, with one GPU each, or with one CPU and one thread each.

Workers open the store themselves, so that no frames travel, and take equal parts of the memory budget of their machine
with all others there and the driver. The driver alone writes.
"""

from __future__ import annotations

import collections
import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mcrnn.data.memory import budget_shared
from mcrnn.device import choose_device
from mcrnn.errors import NotEnoughMemoryError, UserError, first_line
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.kept_scores import Forecasts, deserialize, serialize
from mcrnn.evaluation.parts import PartScorer, Scoring, score_here
from mcrnn.runners.cluster_size import Cluster
from mcrnn.runners.ray_cluster import check_reach, connected
from mcrnn.storage.location import Location
from mcrnn.storage.retry import enable_retries

MOST_LOSSES = 3
"""Workers that may be lost at the same part, one after the other."""
GPU = 1.0
"""GPUs of a worker, where there are any."""


@contextlib.contextmanager
def part_scorer(workers: int, device: str | None, root: Location) -> Iterator[PartScorer]:
    """Return what scores the parts of evaluations inside the block: this process, or workers on Ray.

    Args:
        workers: number of workers; 1 for this process, without Ray.
        device: the device that was asked for; None for GPUs where there are any.
        root: the storage root, which all machines must be able to read.

    Raises:
        UserError: a local root is not seen by all machines of the cluster, or the cluster is out of reach.
    """
    if workers == 1:
        yield score_here
        return
    check_reach(root, tracked=False)
    # the driver's own split is in memory beside those of the workers
    with contextlib.ExitStack() as until_end, budget_shared(workers + 1):
        yield _OnRay(workers, device, until_end)


class _OnRay:
    """A `PartScorer` on workers, which are actors of Ray: so there are never more of them than have a part of memory.

    It connects to Ray when the first part is to be scored, which may be never. Workers stay for further models.
    """

    def __init__(self, workers: int, device: str | None, until_end: contextlib.ExitStack) -> None:
        self.workers, self.device, self._until_end = workers, device, until_end
        self._cluster: Cluster | None = None
        self._idle: list[Any] = []
        """Workers that have nothing to do."""

    def __call__(
        self,
        scoring: Scoring,
        evaluation_set: EvaluationSet,
        parts: Sequence[range],
        on_windows: Callable[[int], None],
    ) -> Iterator[tuple[range, Forecasts]]:
        if not parts:
            return
        check_reach(evaluation_set.address.location, tracked=False)
        gpus, at_once, on_a_machine = self._resources()
        import ray

        sent = _Sent(
            scoring.on_processor(),
            evaluation_set.without_frames(),
            on_a_machine + 1,
            os.environ.get("MCRNN_MEMORY"),
            gpus > 0,
        )
        names, regions = scoring.names, list(evaluation_set.regions)
        new_worker: Any = ray.remote(num_cpus=1, num_gpus=gpus)(_Worker)
        reference, name = ray.put(sent), uuid.uuid4().hex
        self._idle = [actor for actor in self._idle if _lives(actor)]  # a machine may have been lost meanwhile
        waiting, losses = collections.deque(parts), collections.Counter[range | None]()
        running: dict[Any, tuple[Any, range | None]] = {}
        left = len(parts)
        try:
            while left:
                while waiting and self._idle:
                    actor, next_part = self._idle.pop(), waiting.popleft()
                    running[actor.score.remote([reference], name, next_part)] = actor, next_part
                # a worker gets a part when it has started, which it may never do where others have the machines
                for _ in range(min(at_once, left) - len(running)):
                    actor = new_worker.remote()
                    running[actor.started.remote()] = actor, None
                for done in ray.wait(list(running))[0]:
                    actor, part = running.pop(done)
                    content = _result(done, part, losses)
                    if content is None:
                        waiting.extend([] if part is None else [part])
                        continue
                    self._idle.append(actor)
                    if part is None:
                        losses.pop(None, None)  # only losses one after the other end the evaluation
                    else:
                        left -= 1
                        on_windows(len(part))
                        yield part, deserialize(content, names, regions)
        finally:
            for actor, _ in running.values():
                ray.kill(actor)

    def _dismiss(self) -> None:
        import ray

        for actor in self._idle:
            ray.kill(actor)

    def _resources(self) -> tuple[float, int, int]:
        """Return the GPUs of each worker, how many may run at a time, and how many of them on one machine.

        Raises:
            UserError: the cluster has no GPU although one was asked for, or no CPU.
        """
        is_first = self._cluster is None
        if self._cluster is None:
            self._cluster = self._until_end.enter_context(connected())
            self._until_end.callback(self._dismiss)
        cluster = self._cluster
        gpus = GPU if self.device != "cpu" and cluster.room(GPU) else 0.0
        if self.device not in (None, "auto", "cpu") and not gpus:
            raise UserError(f"--device {self.device} needs a GPU, and the Ray cluster has none: leave it out")
        at_once = min(self.workers, cluster.room(gpus))
        if not at_once:
            raise UserError(
                "the Ray cluster has no CPU for a worker of an evaluation: add machines, or leave --workers out"
            )
        if is_first:
            each = "one GPU" if gpus else "one CPU"
            fewer = f", for there is room for no more than {at_once}" if at_once < self.workers else ""
            print(f"scoring on {at_once} workers with {each} each{fewer}", flush=True)
        kinds = (*cluster.machines, *cluster.limits.kinds)
        return gpus, at_once, min(at_once, max(each.room(gpus) for each in kinds))


def _lives(worker: Any) -> bool:
    """Return whether a worker that has nothing to do is still there."""
    import ray

    try:
        ray.get(worker.started.remote())
    except ray.exceptions.RayError:
        return False
    return True


def _result(done: Any, part: range | None, losses: collections.Counter[range | None]) -> bytes | None:
    """Return what a worker has scored; None where it was lost, and another is to try.

    Args:
        done: reference to the result.
        part: positions of the windows; None for the start of the worker.
        losses: how many workers were lost at each part; it is counted on.

    Raises:
        UserError: the worker has failed, and another would too; the message is one sentence.
    """
    import ray

    which = "its start" if part is None else f"windows {part.start} to {part.stop - 1}"
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError):
            # Ray raises a class of its own that is also the worker's
            kind = NotEnoughMemoryError if isinstance(cause, NotEnoughMemoryError) else UserError
            raise kind(str(cause)) from None
        raise UserError(
            f"a worker could not score {which} ({type(cause).__name__}: {first_line(cause)}); what has been scored is "
            "kept, and the same command goes on from there"
        ) from None
    except ray.exceptions.OutOfMemoryError:
        raise NotEnoughMemoryError(
            f"a worker ran out of memory at {which}, and Ray has ended it: give fewer --workers, or set MCRNN_MEMORY "
            "to fewer GB; what has been scored is kept"
        ) from None
    except ray.exceptions.RayError as error:  # a worker or a machine that was lost
        losses[part] += 1
        if losses[part] < MOST_LOSSES:
            return None
        reason = first_line(error)[:200].rstrip(".")
        raise UserError(
            f"{MOST_LOSSES} workers were lost, each at {which}, the last one with: {reason}. If the system has ended "
            "them for want of memory, give fewer --workers, or set MCRNN_MEMORY to fewer GB; what has been scored is "
            "kept"
        ) from None


@dataclass(frozen=True)
class _Sent:
    """What is sent to the workers.

    Attributes:
        scoring: what is scored, with the model in the host's memory.
        evaluation_set: all windows, without frames.
        processes: number of processes on a machine, which share its memory budget.
        memory: MCRNN_MEMORY of the driver; None where it is not set.
        on_gpu: whether each worker has a GPU.
    """

    scoring: Scoring
    evaluation_set: EvaluationSet
    processes: int
    memory: str | None
    on_gpu: bool


class _Worker:
    """The actor that scores parts, which keeps what it has opened."""

    def __init__(self) -> None:
        self._name = ""
        self._opened: tuple[_Sent, EvaluationSet] | None = None

    def started(self) -> bytes:
        """Return nothing, when the worker has started."""
        return b""

    def score(self, reference: list[Any], name: str, part: range) -> bytes:
        """Score a part of the windows.

        Args:
            reference: a list of the reference to a `_Sent`, which Ray would replace by its object were it no list.
            name: name of the `_Sent`.
            part: positions of the windows.
        """
        import ray

        if self._opened is None or name != self._name:
            self._opened = None  # before there is another split in memory
            self._opened, self._name = _open(ray.get(reference[0])), name
        sent, evaluation_set = self._opened
        with budget_shared(sent.processes):
            return serialize(sent.scoring.score(evaluation_set.part(part)))


def _open(sent: _Sent) -> tuple[_Sent, EvaluationSet]:
    torch.set_num_threads(1)
    enable_retries()
    if sent.memory is not None:
        os.environ["MCRNN_MEMORY"] = sent.memory
    if sent.scoring.model is not None:
        sent.scoring.model.network.to(choose_device("auto" if sent.on_gpu else "cpu", "--device"))
    with budget_shared(sent.processes):
        return sent, sent.evaluation_set.reopened()
