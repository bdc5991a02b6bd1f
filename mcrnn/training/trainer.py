"""Train a forecaster: one loop in plain PyTorch, alone or on data-parallel workers.

The loop talks to whatever runs it through a `Session`: it reports metrics and a checkpoint after each epoch, and asks
for the checkpoint to start from. Where `torch.distributed` is initialised, each rank takes its part of every global
batch, and of the validation.

Nothing depends on what a random generator has done before: order, windows, noise and dropout of a step follow from the
seed, the epoch and the step. So a run that continues from a checkpoint, also from within an epoch, is bit for bit the
one that was not interrupted. Another number of workers sees the same windows with the same noise; only the masks of
dropout differ.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from mcrnn.config.sections import Configuration
from mcrnn.data.description import Scaling
from mcrnn.data.masks import mask_weights
from mcrnn.data.splits import FieldData
from mcrnn.data.windows import Batch, TrainingWindows, evaluation_windows, prefetch
from mcrnn.device import is_out_of_memory
from mcrnn.errors import NotEnoughMemoryError
from mcrnn.models import Forecaster
from mcrnn.models.trained_model import network_of
from mcrnn.training.averaging import averaged_model
from mcrnn.training.batch_loss import BatchLoss
from mcrnn.training.epoch_sums import EpochSums
from mcrnn.training.graphed_step import graphed
from mcrnn.training.lr_schedule import epochs_without_improvement, learning_rate
from mcrnn.training.numerics import DeviceUse, keep_freed_memory, numeric_settings, out_of_memory_message
from mcrnn.training.session import OBJECTIVE, PENALTY, End, Metrics, Request, Session, State
from mcrnn.training.step import Step, TrainingStep
from mcrnn.training.validation import validate, validation_metrics

STEPS_BETWEEN_AGREEMENTS = 8
"""Steps after which the workers agree on whether to write a checkpoint or to stop."""
STEPS_BETWEEN_CHECKS = 32
"""Steps between checks for divergence on a GPU: nothing else within an epoch makes the host wait for it."""


def fit(
    config: Configuration,
    data: FieldData,
    session: Session,
    device: torch.device | None = None,
    target: int | None = None,
) -> End:
    """Train as the configuration says, and report after each epoch.

    A loss that is not finite is no error: its step is skipped. After several skipped steps in a row the run reports
    `diverged` with the penalty as its objective, and ends.

    Args:
        config: the configuration of the training.
        data: the training and validation splits.
        session: takes the reports and gives the checkpoint to start from.
        device: where to train; by default the processor.
        target: epoch after which the training is paused; None to train to the end.

    Returns:
        How the training ended.

    Raises:
        UserError: the samples are too short for the windows.
        NotEnoughMemoryError: the message says what was asked for, and what to try.
    """
    keep_freed_memory()
    device = device or torch.device("cpu")
    with numeric_settings(config.train, device):
        try:
            return Trainer(config, data, session, device, target).run()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                use = DeviceUse.of(device)
                message = out_of_memory_message(config, data.field.frame_shape, session.world_size, device, use)
                raise NotEnoughMemoryError(message) from None
            raise


class Trainer:
    """A network, its optimizer and its data, and how far the training is.

    `epoch` counts from 1. `batch` is the number of steps of the epoch that have been taken. See `fit` for the
    arguments.
    """

    def __init__(
        self,
        config: Configuration,
        data: FieldData,
        session: Session,
        device: torch.device,
        target: int | None = None,
    ) -> None:
        self.config, self.data, self.session, self.device, self.target = config, data, session, device, target
        train, validation = config.train, config.validation
        torch.manual_seed(train.seed)  # for the initial weights
        dtype = torch.float64 if train.precision == "float64" else torch.float32
        self.model = network_of(config, data.field).to(device, dtype)
        distributed: nn.Module = self.model
        self.group: dist.ProcessGroup | None = None  # exchanges what lies on the host, which needs gloo
        if session.world_size > 1:
            # the only buffers are those of a mask, which never change
            distributed = DistributedDataParallel(self.model, broadcast_buffers=False)
            if dist.get_backend() != "gloo":
                self.group = dist.new_group(backend="gloo")
        self.average: AveragedModel | None = None
        if train.ema is not None:
            self.average = averaged_model(self.model, train.ema)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(self.parameters, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
        self.scaling = Scaling.of(config.data, *data.field.normalization)
        mask_CHW = data.field.model_mask
        weights_CHW = None if mask_CHW is None else mask_weights(mask_CHW[: self.model.channels_out])
        self.weights_CHW = None if weights_CHW is None else torch.tensor(weights_CHW, dtype=dtype, device=device)
        self.loss = BatchLoss(config, distributed, self.scaling, device, dtype, self.weights_CHW)
        self.sums = EpochSums(device)
        step = TrainingStep(train, self.loss, self.parameters, self.optimizer, self.sums)
        self.step: Step = step
        if train.cuda_graph:
            self.step = graphed(step, train, device, session.world_size, session.warn)
        self.train_split, self.val_split = data.train.on(device), data.val.on(device)
        self.windows = TrainingWindows(
            self.train_split, config.data, data.is_series, train.batch_size, train.seed, data.train_segments
        )
        self.steps_per_epoch = min(len(self.windows), train.max_batches or len(self.windows))
        self.validation_windows = evaluation_windows(
            data.val.shape,
            data.is_series,
            validation.warm_up + validation.horizon,
            validation.windows,
            data.val_segments,
        )
        self.epoch, self.batch = 1, 0
        self.history: list[Metrics] = []
        self.best = float("inf")
        if (checkpoint := session.load_checkpoint()) is not None:
            self._continue_from(checkpoint)
        self.rate: float = self.optimizer.param_groups[0]["lr"]  # of the last step

    def run(self) -> End:
        """Train epoch by epoch to the end."""
        request = Request.NOTHING
        while (end := self._end()) is None:
            if request == Request.STOP:  # made at the last step of an epoch, which has therefore been completed
                return End.INTERRUPTED
            started, first_batch = time.perf_counter(), self.batch
            request = self._train_epoch()
            if self.batch < self.steps_per_epoch and not self.sums.diverged:
                return End.INTERRUPTED
            metrics = self._epoch_metrics(started, first_batch)
            self.best = metrics["best"] = min(self.best, metrics[OBJECTIVE])
            self.history.append(metrics)
            self.epoch, self.batch = self.epoch + 1, 0
            self.sums.start()
            self.session.report(metrics, self.state())
        return end

    def _end(self) -> End | None:
        """Return how the training has ended, None if it goes on."""
        if self.history and self.history[-1]["diverged"]:
            return End.DIVERGED
        if self.epoch > self.config.train.epochs:
            return End.FINISHED
        patience = self.config.train.early_stopping
        if patience is not None and epochs_without_improvement(self.history) >= patience:
            return End.STOPPED_EARLY
        return End.PAUSED if self.target is not None and self.epoch > self.target else None

    def _train_epoch(self) -> Request:
        """Take the remaining steps of the epoch; fewer where the session requests a stop, or on divergence.

        Returns:
            The session's request that is still open.
        """
        request = Request.NOTHING
        session = self.session
        batches = self.windows.epoch(self.epoch, session.rank, session.world_size, self.batch)
        remaining = self.steps_per_epoch - self.batch
        with contextlib.closing(prefetch(itertools.islice(batches, remaining))) as ready:
            for batch in ready:
                self._step(batch)
                self.batch += 1
                last = self.batch == self.steps_per_epoch
                check = self.device.type == "cpu" or last or self.batch % STEPS_BETWEEN_CHECKS == 0
                if check and self.sums.check_divergence(self.steps_per_epoch):
                    break
                request = max(request, session.advance(self.epoch, self.batch, self.steps_per_epoch))
                if session.world_size > 1:
                    if not last and self.batch % STEPS_BETWEEN_AGREEMENTS:
                        continue
                    request = self._agree(request)
                if request and not last:  # after the last step the epoch's own report follows
                    session.report(None, self.state())
                    if request == Request.STOP:
                        break
                    request = Request.NOTHING
        return request

    def _agree(self, request: Request) -> Request:
        """Return the strongest request that any worker's session makes."""
        strongest = torch.tensor(int(request))
        dist.all_reduce(strongest, dist.ReduceOp.MAX, group=self.group)
        return Request(int(strongest))

    def _step(self, batch: Batch) -> None:
        """Take one step of the optimizer, or skip it where the gradient is not finite."""
        train = self.config.train
        rate = learning_rate(
            train, (self.epoch - 1) * self.steps_per_epoch + self.batch, self.steps_per_epoch, self.history
        )
        self.rate = rate
        if self.device.type == "cuda":
            rate = float(torch.tensor(rate, dtype=torch.float32))  # as a graph has it, so that both give the same bits
        if self.config.model.dropout > 0:
            step = self.epoch * self.steps_per_epoch + self.batch
            torch.manual_seed(train.seed + (step << 20) + (self.session.rank << 52))
        self.step.take(self.loss.inputs(batch, self.epoch), rate)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _epoch_metrics(self, started: float, first_batch: int) -> Metrics:
        """Validate, and return the metrics of the epoch.

        Args:
            started: when the epoch was started, or continued from a checkpoint, as `time.perf_counter` gives it.
            first_batch: steps of the epoch that had been taken by then.
        """
        if self.sums.diverged:
            return {"epoch": self.epoch, OBJECTIVE: PENALTY, "diverged": 1.0}
        seconds = time.perf_counter() - started
        train = self.config.train
        windows = min(self.steps_per_epoch * train.batch_size, self.windows.windows_per_epoch)
        frames = (windows - first_batch * train.batch_size) * self.config.data.sequence_length
        metrics: Metrics = {
            "epoch": self.epoch,
            **self.sums.metrics(self.steps_per_epoch, self.session.world_size, self.group),
            **self._validate(),
            "learning_rate": self.rate,
            "frames_per_second": frames / seconds,
            "diverged": 0.0,
        }
        metrics["seconds"] = time.perf_counter() - started
        return metrics

    def _validate(self) -> Metrics:
        """Return the errors on the validation windows, of the averaged weights if they are averaged."""
        validation, session = self.config.validation, self.session
        model = self.model if self.average is None else cast("Forecaster", self.average.module)
        error = validate(
            model,
            self.val_split,
            self.validation_windows,
            self.scaling,
            warm_up=validation.warm_up,
            horizon=validation.horizon,
            batch_size=validation.batch_size,
            weights_CHW=self.weights_CHW,
            rank=session.rank,
            world_size=session.world_size,
            group=self.group,
        )
        field = self.data.field
        std = field.std[: model.channels_out]
        scales = validation.error_scales(field.channels[: model.channels_out], std)
        return validation_metrics(error, validation.warm_up, std, scales)

    def state(self) -> State:
        """Return what a run needs to continue from here."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": self._sums_by_rank(),
            "history": list(self.history),
            "best": self.best,
        }

    def _sums_by_rank(self) -> list[list[float]]:
        own = self.sums.values()
        by_rank: list[Any] = [own] * self.session.world_size
        if self.session.world_size > 1 and self.batch > 0:
            dist.all_gather_object(by_rank, own, group=self.group)
        return by_rank

    def _continue_from(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.epoch, self.batch = state["epoch"], state["batch"]
        by_rank = state["sums"]
        if len(by_rank) == self.session.world_size:
            self.sums.load(by_rank[self.session.rank])
        else:  # the mean over other workers than before, whose mean over the workers is the same to rounding
            self.sums.load([sum(values) / len(by_rank) for values in zip(*by_rank, strict=True)])
        self.history, self.best = state["history"], state["best"]
