"""What the comparison of two models rests on: the error of each window, in a stated region, channels and lead times."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcrnn.config.sections import ValidationConfig
from mcrnn.data.region import Region
from mcrnn.errors import UserError, did_you_mean
from mcrnn.evaluation.metrics import Scores

MOST_ERROR = 4.0
"""Largest normalised mean squared error of a window that counts: twice that of a state without any relation to the
truth, which is 2."""


@dataclass(frozen=True)
class Basis:
    """Which part of the errors counts. By default all of it: the whole grid, all channels, all closed-loop steps.

    Attributes:
        region: the region; None for the whole grid.
        channels: names of the channels; empty for all predicted ones.
        lead_times: first and last lead time; None for those in closed loop, which begin at lead time 2.
    """

    region: Region | None = None
    channels: tuple[str, ...] = ()
    lead_times: tuple[int, int] | None = None

    @classmethod
    def parse(cls, region: str | None, channels: Sequence[str], lead_times: str | None) -> Basis:
        """Read a basis as the command line has it.

        Args:
            region: `N/W/S/E` in degrees; None for the whole grid.
            channels: names of the channels; empty for all.
            lead_times: `A-B`; None for those in closed loop.

        Raises:
            UserError: a text cannot be understood.
        """
        leads = None
        if lead_times is not None:
            found = re.fullmatch(r"([1-9][0-9]*)-([1-9][0-9]*)", lead_times.strip())
            if not found or int(found[1]) > int(found[2]):
                raise UserError(
                    f"--lead-times is FIRST-LAST, such as 2-12, from 1 and in rising order, not '{lead_times}'"
                )
            leads = int(found[1]), int(found[2])
        chosen = None if region is None else Region.parse(region, "--region")
        return cls(chosen, tuple(sorted(set(channels))), leads)  # in any order it is the same comparison

    @property
    def regions(self) -> dict[str, Region]:
        """The region as `EvaluationSet.of` takes it."""
        return {} if self.region is None else {str(self.region): self.region}

    def __str__(self) -> str:
        words = f", of {', '.join(self.channels)}" if self.channels else ""
        words += "" if self.region is None else f", in {self.region}"
        return words + ("" if self.lead_times is None else ", lead times {}-{}".format(*self.lead_times))

    @property
    def recorded(self) -> dict[str, Any]:
        """The parts that were asked for, as they are recorded."""
        asked: Mapping[str, Any] = {
            "region": None if self.region is None else str(self.region),
            "channels": list(self.channels) or None,
            "lead_times": None if self.lead_times is None else "{}-{}".format(*self.lead_times),
        }
        return {name: value for name, value in asked.items() if value is not None}

    def channel_indices(self, predicted: Sequence[str]) -> list[int]:
        """Return the positions of the channels among the predicted ones.

        Raises:
            UserError: a channel is not predicted.
        """
        for name in self.channels:
            if name not in predicted:
                raise UserError(f"--channel {name} is no predicted channel{did_you_mean(name, predicted)}")
        return [list(predicted).index(name) for name in self.channels or predicted]

    def check_lead_times(self, horizon: int) -> None:
        """Refuse lead times beyond the last one, which is `horizon` + 1.

        Raises:
            UserError: they are.
        """
        if self.lead_times is not None and self.lead_times[1] > horizon + 1:
            first, last = self.lead_times
            raise UserError(f"--lead-times {first}-{last} goes beyond the last lead time, which is {horizon + 1}")

    def error_by_window(self, scores: Scores, given: int, channels: Sequence[int], scales: np.ndarray) -> np.ndarray:
        """Return the normalised mean squared error of each window, weighted by area on a globe, at most `MOST_ERROR`.

        A few windows in which both forecasts blow up would otherwise decide for whichever blows up less, and hide the
        spread over all others.

        Args:
            scores: scores of a model at all steps, or of a baseline at all lead times.
            given: position of lead time 1 among them, counted from 0.
            channels: positions of the channels, see `channel_indices`.
            scales: what the error of each of them is divided by; see `ValidationConfig.error_scales`.
        """
        if self.region is not None:
            scores = scores.regions[str(self.region)]
        squared_NTC = scores.squared if scores.weighted is None else scores.weighted
        first, last = self.lead_times or (2, squared_NTC.shape[1] - given)
        chosen_NTC = squared_NTC[:, given + first - 1 : given + last]
        if len(channels) < chosen_NTC.shape[2]:
            chosen_NTC = chosen_NTC[:, :, list(channels)]
        error_N = (chosen_NTC / scales**2).mean((1, 2))
        return np.minimum(np.nan_to_num(error_N, nan=np.inf), MOST_ERROR)


WHOLE = Basis()
"""The whole grid, all predicted channels, all closed-loop steps."""


def quantity(scores: Scores, basis: Basis, weighting: ValidationConfig) -> str:
    """Return the name of the error that `Basis.error_by_window` gives, for headings."""
    closed_loop = "closed-loop " if basis.lead_times is None else ""
    by_area = "" if scores.weighted is None else ", weighted by area"
    return f"{closed_loop}RMSE over the standard deviation{by_area}{weighting.weighting}{basis}"
