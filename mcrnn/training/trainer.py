"""Train a forecaster: one loop in plain PyTorch, alone or on data-parallel workers.

The loop talks to whatever runs it through a `Session`: report metrics and a checkpoint after each epoch, ask
for the checkpoint to start from. Where `torch.distributed` is initialised, each rank takes its part of every
global batch, and of the validation.

Nothing depends on what a random generator has done before: order, windows, noise and dropout of a step follow from
the seed, the epoch and the step. So a run that goes on from a checkpoint, also from within an epoch, is bit for bit
the one that was not interrupted, and another number of workers sees the same samples, with the same noise; only the
masks of dropout are others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mcrnn.config.sections import Configuration
from mcrnn.data.description import Scaling
from mcrnn.data.splits import FieldData
from mcrnn.data.windows import Batch, TrainingWindows, evaluation_windows, prefetch
from mcrnn.errors import NotEnoughMemoryError
from mcrnn.models import Forecaster
from mcrnn.models.forecaster import build_model
from mcrnn.training.lr_schedule import _epochs_without_gain, learning_rate
from mcrnn.training.numerics import _settings, _too_large, keep_freed_memory
from mcrnn.training.session import OBJECTIVE, PENALTY, End, Metrics, Request, Session, State
from mcrnn.training.validation import _errors, validate

SKIPPED_IN_A_ROW = 5
"""steps without a finite gradient after which a run has diverged"""
STEPS_BETWEEN_AGREEMENTS = 8
"""of the workers, on whether to write a checkpoint or to stop"""
STEPS_BETWEEN_CHECKS = 32
"""on GPUs for divergence, which is the only thing that the host waits for within an epoch"""


def fit(config: Configuration, data: FieldData, session: Session, device: torch.device | None = None) -> End:
    """Train as the configuration says, reporting after each epoch, and say how it ended.

    A run whose loss is not a number is not an error: its steps are left out, and after several in a row it reports
    `diverged` with the penalty and ends.

    Raises:
        UserError: the samples are too short for the windows.
        NotEnoughMemoryError: says what was asked for, and what to try.
    """
    keep_freed_memory()
    device = device or torch.device("cpu")
    with _settings(config.train, device):
        try:
            return Trainer(config, data, session, device).run()
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
                raise NotEnoughMemoryError(_too_large(config, data, session.world_size, device)) from None
            raise


class Trainer:
    """A model with all that its training needs."""

    def __init__(self, config: Configuration, data: FieldData, session: Session, device: torch.device) -> None:
        self.config, self.session, self.device = config, session, device
        train = config.train
        torch.manual_seed(train.seed)
        self.dtype = torch.float64 if train.precision == "float64" else torch.float32
        model = build_model(config.model, data.field.frame_shape, data.field.padding)
        self.model = model.to(device, self.dtype)
        self.distributed: nn.Module = self.model
        self.group: dist.ProcessGroup | None = None
        if session.world_size > 1:
            self.distributed = DistributedDataParallel(self.model)
            if dist.get_backend() != "gloo":
                self.group = dist.new_group(backend="gloo")
        self.average: AveragedModel | None = None
        if train.ema is not None:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(train.ema), use_buffers=True)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(self.parameters, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
        self.data = data
        self.train_split, self.val_split = data.train.on(device), data.val.on(device)
        self.scaling = Scaling.of(config.data, data.field.mean, data.field.std)
        self.windows = TrainingWindows(self.train_split, config.data, data.is_series, train.batch_size, train.seed)
        self.batches = min(len(self.windows), train.max_batches or len(self.windows))
        evaluation_set = config.validation
        self.evaluation_set = evaluation_windows(
            data.val.shape, data.is_series, evaluation_set.warm_up + evaluation_set.horizon, evaluation_set.windows
        )
        self.noise = torch.Generator(device)
        self.epoch, self.batch = 1, 0
        self.sums = EpochSums(device)
        self.history: list[Metrics] = []
        self.best = float("inf")
        if (checkpoint := session.load_checkpoint()) is not None:
            self._continue(checkpoint)

    def _continue(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.epoch, self.batch = state["epoch"], state["batch"]
        sums = state["sums"]
        # of this rank where there are as many workers as before, else the mean, which is the same to rounding
        same = len(sums) == self.session.world_size
        self.sums.load(sums[self.session.rank] if same else [sum(each) / len(sums) for each in zip(*sums, strict=True)])
        self.history, self.best = state["history"], state["best"]

    def state(self) -> State:
        """What a run needs to go on from here."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": self._sums_of_all(),
            "history": list(self.history),
            "best": self.best,
        }

    def _sums_of_all(self) -> list[list[float]]:
        mine = self.sums.values()
        every: list[Any] = [mine] * self.session.world_size
        if self.session.world_size > 1 and self.batch > 0:
            dist.all_gather_object(every, mine, group=self.group)
        return every

    def run(self) -> End:
        """Epoch by epoch to the end."""
        train = self.config.train
        request = Request.NOTHING
        while (end := self._end()) is None:
            if request == Request.STOP:
                return End.INTERRUPTED
            started, first = time.perf_counter(), self.batch
            request = self._epoch()
            if self.batch < self.batches and not self.sums.diverged:
                return End.INTERRUPTED
            windows = min(self.batches * train.batch_size, self.windows.windows_per_epoch) - first * train.batch_size
            seconds = time.perf_counter() - started
            metrics: Metrics = {"epoch": self.epoch, OBJECTIVE: PENALTY, "diverged": 1.0}
            if not self.sums.diverged:
                metrics = {
                    "epoch": self.epoch,
                    **self.sums.metrics(self.batches, self),
                    **self._validated(),
                    "learning_rate": self.optimizer.param_groups[0]["lr"],
                    "frames_per_second": windows * self.config.data.sequence_length / seconds,
                    "diverged": 0.0,
                }
                metrics["seconds"] = time.perf_counter() - started
            self.best = metrics["best"] = min(self.best, metrics[OBJECTIVE])
            self.history.append(metrics)
            self.epoch, self.batch = self.epoch + 1, 0
            self.sums = EpochSums(self.device)
            self.session.report(metrics, self.state())
        return end

    def _end(self) -> End | None:
        """Whether the training has come to its end."""
        if self.history and self.history[-1]["diverged"]:
            return End.DIVERGED
        if self.epoch > self.config.train.epochs:
            return End.FINISHED
        patience = self.config.train.early_stopping
        return End.STOPPED_EARLY if patience is not None and _epochs_without_gain(self.history) >= patience else None

    def _epoch(self) -> Request:
        """The steps of an epoch that are left; returns early where a stop was asked for, or on divergence."""
        asked = Request.NOTHING
        limit = self.batches - self.batch
        session = self.session
        batches = self.windows.epoch(self.epoch, session.rank, session.world_size, self.batch)
        with contextlib.closing(prefetch(_first(batches, limit))) as ready:
            for batch in ready:
                self._step(batch)
                self.batch += 1
                last = self.batch == self.batches
                due = self.device.type == "cpu" or last or self.batch % STEPS_BETWEEN_CHECKS == 0
                if due and self.sums.check(self.batches):
                    break
                asked = max(asked, session.advance(self.epoch, self.batch, self.batches))
                if session.world_size > 1:
                    if not last and self.batch % STEPS_BETWEEN_AGREEMENTS:
                        continue
                    asked = self._agreed(asked)
                if asked and not last:
                    session.report(None, self.state())
                    if asked == Request.STOP:
                        break
                    asked = Request.NOTHING
        return asked

    def _agreed(self, asked: Request) -> Request:
        """The most that any worker asks for."""
        most = torch.tensor(int(asked))
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
        return Request(int(most))

    def _step(self, batch: Batch) -> None:
        train = self.config.train
        rate = learning_rate(train, (self.epoch - 1) * self.batches + self.batch, self.batches, self.history)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.config.model.dropout > 0:
            place = self.epoch * self.batches + self.batch
            torch.manual_seed(train.seed + (place << 20) + (self.session.rank << 52))
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=self.device, dtype=self.dtype)
        windows_BTCHW = self.scaling.to_model(batch.windows_BTCHW.to(self.device, self.dtype))
        size = train.micro_batch or len(windows_BTCHW)
        for first in range(0, len(windows_BTCHW), size):
            part = slice(first, first + size)
            share = batch.weight * len(batch.positions[part]) / len(batch.positions)
            with self._without_exchange() if part.stop < len(windows_BTCHW) else contextlib.nullcontext():
                part_loss = self._loss(windows_BTCHW[part], batch.positions[part]) * share
                part_loss.backward()
            loss += part_loss.detach()
        clip = rate if train.gradient_clip == "learning_rate" else train.gradient_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, clip)
        # every rank has the same gradients, so all ranks leave out the same steps; the optimizer does so by itself
        left_out = self.sums.add(loss, norm)
        self.optimizer.grad_scale, self.optimizer.found_inf = None, left_out  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        model = self.distributed
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    def _loss(self, x_BTCHW: torch.Tensor, places: list[int]) -> torch.Tensor:
        """Mean squared error over all steps of a window, in the units the model sees."""
        given_BTCHW = x_BTCHW[:, :-1]
        if self.config.data.noise > 0:
            given_BTCHW = given_BTCHW + self.config.data.noise * self._noise(given_BTCHW, places)
        prediction_BTCHW = self.distributed(given_BTCHW, self.config.train.teacher_forcing(self.epoch))
        return nn.functional.mse_loss(prediction_BTCHW, x_BTCHW[:, 1:, : prediction_BTCHW.shape[2]])

    def _noise(self, x_BTCHW: torch.Tensor, places: list[int]) -> torch.Tensor:
        """Noise that follows from the place of each window in its epoch."""
        noise_BTCHW = torch.empty_like(x_BTCHW, memory_format=torch.contiguous_format)
        for noise_TCHW, place in zip(noise_BTCHW, places, strict=True):
            self.noise.manual_seed((self.config.train.seed << 43) + (self.epoch << 28) + place)
            noise_TCHW.normal_(generator=self.noise)
        return noise_BTCHW

    def _validated(self) -> Metrics:
        """The errors of the validation, of the averaged weights where there are such."""
        evaluation_set, session = self.config.validation, self.session
        model = self.model if self.average is None else cast("Forecaster", self.average.module)
        error = validate(
            model,
            self.val_split,
            self.evaluation_set,
            self.scaling,
            warm_up=evaluation_set.warm_up,
            horizon=evaluation_set.horizon,
            batch_size=evaluation_set.batch_size,
            rank=session.rank,
            world_size=session.world_size,
            group=self.group,
        )
        return _errors(error, evaluation_set.warm_up, self.data.field.std[: model.channels_out])


class EpochSums:
    """What is added up over the steps of an epoch, on the device, without waiting for it."""

    NAMES = ("loss", "gradient_norm", "skipped", "in_a_row", "longest_row")

    def __init__(self, device: torch.device) -> None:
        self.tensor = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)
        self.diverged = False

    def add(self, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """Take a step's; returns 1 where its gradient is not finite, and else 0."""
        left_out = (~norm.isfinite()).to(torch.float32)
        taken = left_out == 0
        loss_sum, norm_sum, skipped, in_a_row, longest = self.tensor.unbind()
        loss_sum += torch.where(taken, loss, 0.0)
        norm_sum += torch.where(taken, norm, 0.0)
        skipped += left_out
        in_a_row.copy_((in_a_row + 1) * left_out)
        torch.maximum(longest, in_a_row, out=longest)
        return left_out

    def check(self, batches: int) -> bool:
        """Whether too many steps in a row were left out, or all of an epoch of few batches."""
        self.diverged = bool(self.tensor[-1] >= min(SKIPPED_IN_A_ROW, batches))
        return self.diverged

    def values(self) -> list[float]:
        """All sums."""
        return self.tensor.tolist()

    def load(self, values: list[float]) -> None:
        """Go on from such."""
        self.tensor.copy_(torch.tensor(values, dtype=torch.float64))

    def metrics(self, batches: int, training: Trainer) -> Metrics:
        """Means over the steps that were taken, and over all workers."""
        loss, norm, skipped = self.values()[:3]
        taken = max(1.0, batches - skipped)
        if training.session.world_size > 1:
            total = torch.tensor([loss], dtype=torch.float64)
            dist.all_reduce(total, group=training.group)
            loss = float(total[0]) / training.session.world_size
        return {"loss": loss / taken, "gradient_norm": norm / taken, "skipped_steps": skipped}


def _first(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    for _, batch in zip(range(count), batches, strict=False):
        yield batch
