"""How long the trainings of a table will take on this machine, from a short training of each row."""

from __future__ import annotations

import os
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
from mcrnn.storage.presence import see
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


@dataclass
class Correction:
    """How much longer work has really taken than it was estimated to take."""

    estimated: float = 0.0
    taken: float = 0.0

    def note(self, estimated: float, taken: float) -> None:
        """Take note of the seconds that a piece of work has taken."""
        self.estimated += estimated
        self.taken += taken

    def ratio(self, otherwise: float = 1.0) -> float:
        """Return the time that work takes over its estimate; `otherwise` where none has been done."""
        return self.taken / self.estimated if self.estimated else otherwise


class RemainingTime:
    """How long the command will still take: the estimates, corrected by how long the work has really taken.

    Args:
        settings: the tables.
        costs: the cost of each row of each table that has trainings left.
    """

    def __init__(self, settings: Sequence[Setting], costs: Sequence[Costs]) -> None:
        self.trainings = [training for setting in settings for training in setting.trainings]
        self._costs = {
            training.uri: each[training.row]
            for setting, each in zip(settings, costs, strict=True)
            for training in setting.trainings
            if training.row in each
        }
        self._to_train = {each.uri for each in self.trainings if each.epochs_left}
        self._evaluated: set[str] = set()
        """Names of the tables that are evaluated."""
        self._settings = settings
        self.training, self.evaluation = Correction(), Correction()

    @property
    def left(self) -> list[PlannedTraining]:
        """The trainings that are to be done."""
        return [each for each in self.trainings if each.uri in self._to_train and each.epochs_left]

    def seconds(self, trainings: Sequence[PlannedTraining]) -> float:
        """Return how long some trainings will take, without the correction."""
        return sum(self._costs[each.uri].training_seconds(each) for each in trainings)

    def evaluation_seconds(self, setting: Setting) -> float:
        """Return how long the evaluation of a table's models will take, without the correction.

        Of rows all of whose trainings had ended before, nothing was measured, and nothing is counted.
        """
        known = (self._costs.get(each.uri) for each in setting.trainings)
        return sum(cost.evaluation_seconds for cost in known if cost is not None)

    def note_evaluation(self, setting: Setting, taken: float | None) -> None:
        """Take note that a table was evaluated.

        Args:
            setting: the table.
            taken: seconds that it took; None where it was not possible. They correct the estimates only where all
                models are new: of others nothing was measured, and their scores may be kept from before.
        """
        if taken is not None and all(each.uri in self._to_train for each in setting.trainings):
            self.evaluation.note(self.evaluation_seconds(setting), taken)
        self._evaluated.add(setting.name)

    def describe(self) -> str:
        """Return in a few words how long what is left will take, with the evaluation."""
        training = self.training.ratio() * self.seconds(self.left)
        tables = [each for each in self._settings if each.name not in self._evaluated]
        return f"about {format_duration(training + sum(map(self._corrected_evaluation, tables)))}"

    def describe_evaluation(self, setting: Setting) -> str:
        """Return a line that says how long the evaluation of a table's models will take."""
        seconds = self._corrected_evaluation(setting)
        left = f", about {format_duration(seconds)}" if seconds else ""
        return f"evaluating the models of {setting.name}{left}"

    def _corrected_evaluation(self, setting: Setting) -> float:
        # before the first table is evaluated, a machine that trains slower than it was measured also evaluates slower
        return self.evaluation.ratio(otherwise=self.training.ratio()) * self.evaluation_seconds(setting)

    def summary(self, device: torch.device) -> str:
        """Return in a line how much is to be done, and how long it takes on a device of this machine."""
        if not (left := self.left):
            return f"all {len(self.trainings)} trainings are done"
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"threads: {torch.get_num_threads()}"
        return (
            f"{len(left)} of {len(self.trainings)} trainings are to be done: {self.describe()} on this machine "
            f"({where}), evaluation included"
        )

    def advice(self, device: torch.device) -> str | None:
        """Return a line that says how to use the other cores; None where there are none, or other processes work."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        left = self.left
        if device.type != "cpu" or cores == 1 or len(left) < 2 or any(map(_is_trained, left)):
            return None
        return (
            f"this machine has {cores} cores: the same command in a second terminal shares the trainings, best one for "
            "each core, each with OMP_NUM_THREADS=1"
        )


def _is_trained(training: PlannedTraining) -> bool:
    """Say whether a process is at a training."""
    seen = see(training.folder.location)
    return seen is not None and seen.is_running


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
