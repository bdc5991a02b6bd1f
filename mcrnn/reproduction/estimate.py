"""How long the trainings of a table will take on this machine, from a short training of each row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from mcrnn.console import new_table
from mcrnn.data.splits import FieldData
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import TrainingWindows, evaluation_windows
from mcrnn.device import choose_device
from mcrnn.evaluation.starts import windows_by_rule
from mcrnn.models import parameter_count
from mcrnn.reports.evaluation_tables import format_duration, format_figure
from mcrnn.reproduction.plan import PlannedTraining, Setting
from mcrnn.storage.retry import print_warning
from mcrnn.training.session import CallbackSession, Metrics, Request, State
from mcrnn.training.trainer import fit

MEASURED_STEPS = 40
"""Steps of the optimizer in the short training, as far as an epoch has so many."""
STEPS_BEFORE = 10
"""First steps, which are not measured: they allocate memory, and on a GPU compile kernels."""


@dataclass(frozen=True)
class Cost:
    """What a training costs on this machine.

    Attributes:
        step_seconds: time of a step of the optimizer.
        steps_per_epoch: number of steps of an epoch.
        validation_seconds: time of the validation at the end of an epoch.
        evaluation_seconds: time of the evaluation on the test split, computed from that of the validation.
    """

    step_seconds: float
    steps_per_epoch: int
    validation_seconds: float
    evaluation_seconds: float

    @property
    def epoch_seconds(self) -> float:
        """Time of an epoch."""
        return self.steps_per_epoch * self.step_seconds + self.validation_seconds

    def training_seconds(self, training: PlannedTraining) -> float:
        """Return how long the epochs will take that are left of a training."""
        return training.epochs_left * self.epoch_seconds


Costs = dict[str, Cost]
"""The cost of a training of each row that has trainings left, by the name of the row."""


class StopWatch(CallbackSession):
    """A session that notes when each step was taken and when the epoch was reported."""

    def __init__(self) -> None:
        super().__init__(on_report=self._note_report)
        self.has_diverged = False
        self.times = [time.perf_counter()]
        self.reported = 0.0

    def advance(self, epoch: int, batch: int, batches: int) -> Request:
        self.times.append(time.perf_counter())
        return Request.NOTHING

    def _note_report(self, metrics: Metrics, checkpoint: State) -> None:
        self.reported, self.has_diverged = time.perf_counter(), bool(metrics["diverged"])

    @property
    def step_seconds(self) -> float:
        """Mean time of the steps after the first ones. On a GPU the last step ends when all have been computed."""
        first = min(STEPS_BEFORE, (len(self.times) - 1) // 2)
        steps = len(self.times) - 1 - first
        if not steps:  # diverged at the first one
            return self.reported - self.times[0]
        return (self.times[-1] - self.times[first]) / steps

    @property
    def validation_seconds(self) -> float:
        """Time from the last step to the report."""
        return self.reported - self.times[-1]


def estimate(setting: Setting) -> Costs:
    """Measure a training of each row that has trainings left; nothing is written.

    Returns:
        The cost of each of these rows, by its name.

    Raises:
        UserError: `train.device` cannot be used.
    """
    left = {row: [each for each in trainings if each.epochs_left] for row, trainings in setting.rows.items()}
    return {row: _measure(each[0], setting.data, setting.store) for row, each in left.items() if each}


def _measure(training: PlannedTraining, data: FieldData, store: FieldStore) -> Cost:
    config, validation = training.config, training.config.validation
    windows = TrainingWindows(
        data.train, config.data, data.is_series, config.train.batch_size, config.train.seed, data.train_segments
    )
    steps = min(len(windows), config.train.max_batches or len(windows))
    short = config.train.model_copy(update={"epochs": 1, "max_batches": min(steps, MEASURED_STEPS)})
    watch = StopWatch()
    fit(config.model_copy(update={"train": short}), data, watch, choose_device(config.train.device, "train.device"))
    if watch.has_diverged:
        print_warning(
            f"{config.name} diverges in its first steps, so that the time for {training.row} is only a rough guess: "
            "try a smaller train.learning_rate"
        )
    length = validation.warm_up + validation.horizon
    val_windows = evaluation_windows(data.val.shape, data.is_series, length, validation.windows, data.val_segments)
    test_shape = store.shape("test", config.data.coarsen, config.data.variables)
    tested = len(windows_by_rule(store, "test", test_shape, length, validation.warm_up, None)[0][0])
    return Cost(
        watch.step_seconds, steps, watch.validation_seconds, watch.validation_seconds * tested / len(val_windows[0])
    )


class RemainingTime:
    """How long the command will still take: the estimates, corrected by how long trainings have really taken."""

    def __init__(self, settings: Sequence[Setting], costs: Sequence[Costs]) -> None:
        self.trainings = [training for setting in settings for training in setting.trainings]
        self._costs = {
            training.uri: each[training.row]
            for setting, each in zip(settings, costs, strict=True)
            for training in setting.trainings
            if training.epochs_left
        }
        self._estimated = self._taken = 0.0

    @property
    def left(self) -> list[PlannedTraining]:
        """The trainings that are to be done."""
        return [each for each in self.trainings if each.uri in self._costs and each.epochs_left]

    def seconds(self, trainings: Sequence[PlannedTraining]) -> float:
        """Return how long some trainings will take, without the correction."""
        return sum(self._costs[each.uri].training_seconds(each) for each in trainings)

    def note(self, estimated: float, taken: float) -> None:
        """Take note of the seconds that a training has taken."""
        self._estimated += estimated
        self._taken += taken

    def describe(self) -> str:
        """Return in a few words how long what is left will take, with the evaluation."""
        left = self.left
        ratio = self._taken / self._estimated if self._estimated else 1.0
        evaluation = sum(cost.evaluation_seconds for cost in self._costs.values())
        return f"about {format_duration(ratio * self.seconds(left) + evaluation)}"

    def summary(self, device: torch.device) -> str:
        """Return in a line how much is to be done, and how long it takes on a device of this machine."""
        if not (left := self.left):
            return f"all {len(self.trainings)} trainings are done"
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"threads: {torch.get_num_threads()}"
        return (
            f"{len(left)} of {len(self.trainings)} trainings are to be done: {self.describe()} on this machine "
            f"({where}), evaluation included"
        )


def estimate_table(setting: Setting, costs: Costs) -> Table:
    """Return what the trainings of a setting will take, a line for each row that has trainings left."""
    title = f"{setting.name}, measured on this machine"
    table = new_table(["", "params", "trainings", "ms a step", "an epoch", "all"], title=title)
    field = setting.data.field
    for row, cost in costs.items():
        left = [each for each in setting.rows[row] if each.epochs_left]
        if not left:  # another process has trained it meanwhile
            continue
        table.add_row(
            row,
            f"{parameter_count(left[0].config.model, field.frame_shape):,}",
            str(len(left)),
            format_figure(1000 * cost.step_seconds),
            format_duration(cost.epoch_seconds),
            format_duration(sum(cost.training_seconds(each) for each in left)),
        )
    return table
