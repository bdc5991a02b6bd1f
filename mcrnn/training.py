"""Train a forecaster: one loop in plain PyTorch, alone or on data-parallel workers.

The loop talks to whatever runs it through a `Session`: report metrics and a checkpoint after each epoch, ask
for the checkpoint to start from. Where `torch.distributed` is initialised, each rank takes its part of every
global batch, and of the validation.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mcrnn.allocator import keep_freed_memory
from mcrnn.config import Configuration, ModelConfig
from mcrnn.metrics import SquaredError
from mcrnn.models import Forecaster
from mcrnn.windows import FieldData, Scaling, Split, Starts, TrainingWindows, evaluation_windows

OBJECTIVE = "rmse_closed_loop_normalized"
"""what a search minimises: the closed-loop RMSE of the validation over the store's training deviation"""
PENALTY = 10.0
"""the objective of a run whose loss is not a number, and the largest that is reported: ten deviations"""

Metrics = dict[str, float]


class Session(Protocol):
    """Whatever runs the loop: a plain process, a Tune trial, a Ray Train worker."""

    rank: int
    world_size: int

    def report(self, metrics: Metrics, checkpoint: dict[str, Any]) -> None:
        """Take the metrics of an epoch and the state after it. Called on every rank."""

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to start from, None for the beginning."""


@dataclass
class Alone:
    """A session of one process that hands each report to a function."""

    on_report: Callable[[Metrics, dict[str, Any]], None]
    checkpoint: dict[str, Any] | None = None
    rank: int = 0
    world_size: int = 1

    def report(self, metrics: Metrics, checkpoint: dict[str, Any]) -> None:
        self.on_report(metrics, checkpoint)

    def load_checkpoint(self) -> dict[str, Any] | None:
        return self.checkpoint


@contextlib.contextmanager
def running_in(precision: str, device: torch.device) -> Iterator[None]:
    """Convolve in float32, tf32 or bf16; recurrences, norms and the loss stay in float32.

    tf32 is float32 with ten bits of mantissa in products; there is none on processors, where it is float32.
    """
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    # cuDNN takes tf32 unless told otherwise
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def build_model(config: ModelConfig, frame_shape: tuple[int, int, int], padding: str) -> Forecaster:
    """The network of a configuration.

    Args:
        config: its sizes and options.
        frame_shape: channels, height, width of the field the model sees.
        padding: what the field's boundary asks for, unless the configuration says otherwise.
    """
    channels, height, width = frame_shape
    return Forecaster(
        config.architecture,
        hidden_size=config.widths,
        channels=channels,
        height=height,
        width=width,
        padding=config.padding or padding,
        kernel_size=config.kernel_size,
        prediction=config.prediction,
        decode=config.decode,
        norm=config.norm,
        norm_groups=config.norm_groups,
        dropout=config.dropout,
        tanh_encoder=config.tanh_encoder,
        channels_out=config.channels_out,
    )


@torch.no_grad()
def validate(
    model: Forecaster,
    split: Split,
    windows: Starts,
    scaling: Scaling,
    *,
    warm_up: int,
    horizon: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> SquaredError:
    """Errors of all windows in the field's units: `warm_up` teacher-forced steps, then `horizon` in closed loop.

    The result does not depend on the batch size or on the number of workers (but for rounding).

    Args:
        model: in the units of `scaling`.
        split: whose windows are judged.
        windows: sample and first frame of each.
        scaling: between the field's units and the model's.
        warm_up: frames given.
        horizon: closed-loop steps after them.
        batch_size: windows at a time.
        rank: of this worker.
        world_size: number of workers that share the windows.
    """
    steps = warm_up + horizon
    error = SquaredError(steps, model.channels_out)
    model.eval()
    samples, starts = (part[rank::world_size].split(batch_size) for part in windows)
    for sample_B, start_B in zip(samples, starts, strict=True):
        batch_BTCHW = split.windows(sample_B, start_B, steps + 1)
        given_BTCHW = scaling.to_model(batch_BTCHW[:, :warm_up])
        prediction_BTCHW = scaling.to_physical(model(given_BTCHW, warm_up, steps))
        error.update(prediction_BTCHW, batch_BTCHW[:, 1 : steps + 1, : model.channels_out])
    model.train()
    if world_size > 1:
        count = torch.tensor(error.count)
        dist.all_reduce(error.total_TC)
        dist.all_reduce(count)
        error.count = int(count)
    return error


def fit(config: Configuration, data: FieldData, session: Session) -> None:
    """Train as the configuration says, reporting after each epoch.

    A run whose loss is not a number is not an error: it reports `diverged` with the penalty and ends.

    Raises:
        UserError: the samples are too short for the windows.
    """
    train = config.train
    keep_freed_memory()
    torch.manual_seed(train.seed)
    scaling = Scaling.of(config.data, data.mean, data.std)
    model = build_model(config.model, data.frame_shape, data.padding)
    device = next(model.parameters()).device
    wrapped: nn.Module = DistributedDataParallel(model) if session.world_size > 1 else model
    windows = TrainingWindows(data.train, config.data, data.is_series, train.batch_size, train.seed)
    validation = config.validation
    exam = evaluation_windows(
        data.val.shape, data.is_series, validation.warm_up + validation.horizon, validation.windows
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
    schedule = _schedule(config, optimizer, train.epochs * len(windows))
    noise = torch.Generator()
    best = float("inf")
    best_weights: dict[str, torch.Tensor] = {}
    first_epoch = 1
    if (checkpoint := session.load_checkpoint()) is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        best, best_weights = checkpoint["best"], checkpoint["best_model"]
        first_epoch = checkpoint["epoch"] + 1

    for epoch in range(first_epoch, train.epochs + 1):
        noise.manual_seed((train.seed << 32) + (epoch << 12) + session.rank)
        started = time.perf_counter()
        loss, gradient_norm, learning_rate = 0.0, 0.0, optimizer.param_groups[0]["lr"]
        for windows_BTCHW, weight in windows.epoch(epoch, session.rank, session.world_size):
            with running_in(train.precision, device):
                step_loss = _loss(config, wrapped, scaling.to_model(windows_BTCHW), noise) * weight
                optimizer.zero_grad()
                step_loss.backward()
            gradient_norm = float(nn.utils.clip_grad_norm_(parameters, train.gradient_clip or float("inf")))
            # every rank has the same gradients, so all ranks decide the same
            if not torch.isfinite(torch.tensor(gradient_norm)):
                session.report(_diverged(epoch), _state(model, optimizer, schedule, epoch, best, best_weights))
                return
            optimizer.step()
            schedule.step()
            loss += float(step_loss.detach()) / len(windows)
        frames = windows.windows_per_epoch * config.data.sequence_length
        frames_per_second = frames / (time.perf_counter() - started)
        with running_in(train.precision, device):
            error = validate(
                model,
                data.val,
                exam,
                scaling,
                warm_up=validation.warm_up,
                horizon=validation.horizon,
                batch_size=validation.batch_size,
                rank=session.rank,
                world_size=session.world_size,
            )
        metrics = {
            "epoch": epoch,
            "loss": _mean_over_ranks(loss, session),
            **_errors(error, validation.warm_up, data.std[: model.channels_out]),
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "frames_per_second": frames_per_second,
            "diverged": 0.0,
        }
        if metrics[OBJECTIVE] < best:
            best = metrics[OBJECTIVE]
            best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        metrics["best"] = best
        session.report(metrics, _state(model, optimizer, schedule, epoch, best, best_weights))


def _loss(config: Configuration, model: nn.Module, x_BTCHW: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Mean squared error over all steps of a window, in the units the model sees."""
    given_BTCHW = x_BTCHW[:, :-1]
    if config.data.noise > 0:
        given_BTCHW = given_BTCHW + config.data.noise * torch.randn(given_BTCHW.shape, generator=noise)
    prediction_BTCHW = model(given_BTCHW, config.train.teacher_forcing_steps)
    return nn.functional.mse_loss(prediction_BTCHW, x_BTCHW[:, 1:, : prediction_BTCHW.shape[2]])


def _schedule(
    config: Configuration, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.train.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _errors(error: SquaredError, warm_up: int, std: tuple[float, ...]) -> Metrics:
    """The validation's metrics; errors in the field's units but for the objective, all finite."""
    largest = PENALTY * max(std)
    return {
        "rmse_teacher_forced": min(error.rmse(1, warm_up), largest),
        "rmse_closed_loop": min(error.rmse(warm_up + 1, error.steps), largest),
        OBJECTIVE: min(error.rmse_normalized(warm_up + 1, error.steps, std), PENALTY),
    }


def _diverged(epoch: int) -> Metrics:
    return {"epoch": epoch, OBJECTIVE: PENALTY, "best": PENALTY, "diverged": 1.0}


def _mean_over_ranks(value: float, session: Session) -> float:
    if session.world_size == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total[0]) / session.world_size


def _state(
    model: Forecaster,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
    best: float,
    best_weights: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """What a run needs to go on from here, and the best weights so far."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": epoch,
        "best": best,
        "best_model": best_weights,
    }
