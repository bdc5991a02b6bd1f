"""Training steps as CUDA graphs: the host starts one graph in place of some hundred operations.

A graph repeats operations that were recorded, with the same numbers and on the same memory. So what changes from step
to step lies in tensors that stay where they are, the static inputs, into which the values of each step are copied: the
windows, the frames with noise, and the learning rate. Noise is drawn before the graph is started. Masks of dropout are
drawn within it, from the generator of the device, which PyTorch registers with every graph, and whose seed is set
before each step. The average of the weights is one operation after the graph.

What the host decides on is part of the graph: the shape of the windows, and how many steps are teacher-forced, because
these go through a layer together. There is a graph for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch

from mcrnn.config.sections import TrainConfig
from mcrnn.errors import first_line
from mcrnn.training.batch_loss import StepInputs
from mcrnn.training.step import Step, TrainingStep

SEVERAL_WORKERS = "several workers exchange gradients within a step"
"""Why data-parallel workers use no graph."""


class Graphs(Protocol):
    """Records the operations of a function, so that they can be repeated."""

    def run(self, work: Callable[[], None]) -> None:
        """Run a function without recording it, as the libraries of a GPU need it once before a recording."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the operations of a function on the device, without any effect there.

        Returns:
            A function that runs the operations.

        Raises:
            RuntimeError: the function does what cannot be recorded.
        """

    def clear(self) -> None:
        """Give the memory of all that was recorded free; none of it is run again."""


class CudaGraphs:
    """Graphs on a GPU. They share their memory, since no graph reads what another has computed in it.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._memory = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._stream.device)
        try:
            # meanwhile a thread reads the next batch, which also asks the GPU for memory
            with torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.set_stream(current)  # PyTorch does not where a recording fails
        return graph.replay

    def clear(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()  # PyTorch takes no handle again whose graphs are gone


@dataclass(frozen=True)
class _Recorded:
    """A graph and its static inputs."""

    inputs: StepInputs
    replay: Callable[[], None]


class GraphedStep:
    """Takes the first step of each shape operation by operation, records the second, and repeats it from then on.

    Args:
        step: the step.
        graphs: records it.
        warn: takes a line where that cannot be done, and the steps go on operation by operation.
    """

    def __init__(self, step: TrainingStep, graphs: Graphs, warn: Callable[[str], None]) -> None:
        self.step, self.graphs, self.warn = step, graphs, warn
        parameter = step.parameters[0]
        # the fused optimizer reads the tensor in float32 on GPUs, in float64 on processors
        dtype = torch.float32 if parameter.is_cuda else torch.float64
        self._rate = torch.zeros((), dtype=dtype, device=parameter.device)
        self._recorded: dict[Hashable, _Recorded | None] = {}
        self._forced = 0
        self.can_record = True

    def take(self, inputs: StepInputs, rate: float) -> None:
        """See `Step.take`."""
        if not self.can_record:
            self.step.take(inputs, rate)
            return
        if inputs.teacher_forcing_steps != self._forced:  # a curriculum has gone on, and does not come back
            self._forced = inputs.teacher_forcing_steps
            self._forget()
        shape = inputs.windows_BTCHW.shape, inputs.weight
        if shape not in self._recorded:
            self.graphs.run(lambda: self.step.take(inputs, rate))
            self._recorded[shape] = None
            return
        recorded = self._recorded[shape]
        try:
            recorded = recorded or self._record(inputs)
        except RuntimeError as error:  # also where memory is not enough, for a graph has memory of its own
            self.can_record = False
            self._forget()
            self.warn(unused(f"a step cannot be recorded ({first_line(error)})"))
            self.step.take(inputs, rate)
            return
        self._recorded[shape] = recorded
        recorded.inputs.copy_(inputs)
        self._rate.fill_(rate)
        recorded.replay()
        for group in self.step.optimizer.param_groups:
            group["lr"] = rate  # as the metrics and a checkpoint have it

    def _forget(self) -> None:
        """Drop all graphs."""
        self._recorded.clear()
        self.graphs.clear()

    def _record(self, inputs: StepInputs) -> _Recorded:
        static = inputs.clone()
        groups = self.step.optimizer.param_groups
        for group in groups:
            group["capturable"] = True  # else the optimizer refuses
        try:
            return _Recorded(static, self.graphs.record(lambda: self.step.take(static, self._rate)))
        finally:
            for group in groups:
                group["capturable"] = False


def graphed(
    step: TrainingStep, train: TrainConfig, device: torch.device, world_size: int, warn: Callable[[str], None]
) -> Step:
    """Return a step that is repeated as a CUDA graph; the step as it is, with a reason to `warn`, where it cannot be.

    Args:
        step: the step.
        train: the configuration of the training.
        device: the device of the training.
        world_size: number of data-parallel workers.
        warn: takes a line for the user.
    """
    reason = None
    if device.type != "cuda":
        reason = f"the training runs on {device.type}, not on a CUDA device"
    elif world_size > 1:
        reason = SEVERAL_WORKERS
    elif train.gradient_clip == "learning_rate":
        reason = "train.gradient_clip: learning_rate needs the learning rate on the host"
    if reason is not None:
        warn(unused(reason))
        return step
    return GraphedStep(step, CudaGraphs(device), warn)


def unused(reason: str) -> str:
    """Return the line that says why there is no graph."""
    return f"train.cuda_graph is not used: {reason}. The steps run operation by operation, with the same results"
