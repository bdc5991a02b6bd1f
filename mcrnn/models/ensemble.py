"""An ensemble: several trained models of one field as one model, which forecasts the mean of their forecasts.

Each member runs on its own output, and the mean is taken of what they forecast. A member that counts more than once
has as much more weight. Imports neither Ray nor MLflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mcrnn.data.description import Scaling
from mcrnn.errors import UserError
from mcrnn.models.forecaster import Forecaster, with_inputs
from mcrnn.models.precision import running_in
from mcrnn.models.sizing import ModelCost
from mcrnn.models.trained_model import TrainedModel


class EnsembleNetwork(nn.Module):
    """The networks of the members as one network, with the methods of a `Forecaster` that evaluations use.

    Args:
        networks: networks of the members.
        scalings: conversion between the field's units and those of each network.
        counts: how often each member counts.
        precisions: the precision that each network computes in; see `running_in`.
    """

    def __init__(
        self,
        networks: Sequence[Forecaster],
        scalings: Sequence[Scaling],
        counts: Sequence[int],
        precisions: Sequence[str],
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.scalings, self.precisions = tuple(scalings), tuple(precisions)
        self.counts: torch.Tensor
        self.register_buffer("counts", torch.tensor(counts))
        self.frame_shape, self.channels_out = networks[0].frame_shape, networks[0].channels_out
        self.inputs = networks[0].inputs
        self.takes_any_grid = all(network.takes_any_grid for network in networks)

    def frames_read(self, teacher_forcing_steps: int, steps: int) -> int:
        """Return how many frames are read; see `Forecaster.frames_read`."""
        return max(teacher_forcing_steps, steps) if self.inputs else teacher_forcing_steps

    def weights(self) -> torch.Tensor:
        """Return the weight of each member; their sum is 1."""
        return self.counts / self.counts.sum()

    def forward(
        self, x_BTCHW: torch.Tensor, teacher_forcing_steps: int | None = None, steps: int | None = None
    ) -> torch.Tensor:
        """Return the mean of the members' predictions, in units of the first one; see `Forecaster.forward`."""
        mean_BTCHW: torch.Tensor | None = None
        for weight, each_BTCHW in zip(self.weights(), self.members(x_BTCHW, teacher_forcing_steps, steps), strict=True):
            mean_BTCHW = weight * each_BTCHW if mean_BTCHW is None else mean_BTCHW + weight * each_BTCHW
        assert mean_BTCHW is not None
        return mean_BTCHW

    def members(
        self, x_BTCHW: torch.Tensor, teacher_forcing_steps: int | None = None, steps: int | None = None
    ) -> list[torch.Tensor]:
        """Return the prediction of each member, in units of the first one."""
        own = self.scalings[0]
        found = []
        for network, scaling, precision in zip(self.networks, self.scalings, self.precisions, strict=True):
            is_own = scaling == own
            given_BTCHW = x_BTCHW if is_own else scaling.to_model(own.to_physical(x_BTCHW))
            with running_in(precision, x_BTCHW.device):
                prediction_BTCHW = network(given_BTCHW, teacher_forcing_steps, steps)
            found.append(prediction_BTCHW if is_own else own.to_model(scaling.to_physical(prediction_BTCHW)))
        return found

    def forecast(
        self, frames_BTCHW: torch.Tensor, steps: int, inputs_BTIHW: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Continue a sequence; see `Forecaster.forecast`."""
        given = frames_BTCHW.shape[1]
        return self(with_inputs(frames_BTCHW, inputs_BTIHW), given, given + steps - 1)[:, given - 1 :]


@dataclass(frozen=True)
class Ensemble(TrainedModel):
    """Several models as one. Configuration and field are those of the first member."""

    members: tuple[TrainedModel, ...] = ()
    counts: tuple[int, ...] = ()
    """How often each member counts."""
    names: tuple[str, ...] = ()
    """Name of each member, such as `trial-7`, or its URI."""

    @classmethod
    def of(cls, members: Sequence[TrainedModel], counts: Sequence[int], names: Sequence[str]) -> Ensemble:
        """Return the ensemble of some models.

        Raises:
            UserError: they were not trained on the same field, or do not predict the same channels.
        """
        first = members[0]
        for member, name in zip(members, names, strict=True):
            for what, ours, theirs in (
                ("the store with digest", first.field.store_digest[:12], member.field.store_digest[:12]),
                ("the channels", first.field.channels, member.field.channels),
                ("the grid", first.field.frame_shape, member.field.frame_shape),
                ("predicted channels:", first.network.channels_out, member.network.channels_out),
            ):
                if ours != theirs:
                    raise UserError(
                        f"'{names[0]}' and '{name}' cannot be in one ensemble: the first has {what} {ours}, the other "
                        f"{theirs}"
                    )
        network = EnsembleNetwork(
            [each.network for each in members],
            [each.scaling for each in members],
            counts,
            [each.config.train.precision for each in members],
        )
        return cls(first.config, first.field, network.eval(), tuple(members), tuple(counts), tuple(names))  # type: ignore[arg-type]

    @property
    def architecture(self) -> str:
        """What the model is, in a few words."""
        return f"ensemble of {sum(self.counts)}"

    @property
    def cost(self) -> ModelCost:
        """Parameters, work and memory of all members together; one that counts twice runs only once."""
        costs = [each.cost for each in self.members]
        return ModelCost(*(sum(values) for values in zip(*(vars(cost).values() for cost in costs), strict=True)))
