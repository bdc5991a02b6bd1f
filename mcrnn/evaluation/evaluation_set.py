"""The evaluation set: the fixed windows of a split on which models and baselines are evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from mcrnn.config.sections import Configuration, DataConfig
from mcrnn.data.memory import memory_budget
from mcrnn.data.region import Region
from mcrnn.data.segments import WHOLE, Segments
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.splits import Split, SplitAddress, open_split
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import Starts, check_length, evaluation_windows
from mcrnn.errors import UserError
from mcrnn.evaluation.climatology import Climatology
from mcrnn.evaluation.measures import Measures
from mcrnn.evaluation.metrics import Scores
from mcrnn.evaluation.regions import region_points
from mcrnn.evaluation.starts import overlap_of, windows_by_rule
from mcrnn.storage.location import Location

BATCH_SIZE = 32
"""Windows that are evaluated at a time, where memory has room for them."""
SHARE_OF_BUDGET = 0.25
"""Share of `memory_budget` that a batch may take, beside the splits that the budget is meant for."""
FRAME_COPIES, LAYER_COPIES = 6, 3
"""Arrays of the size of all frames that exist at a time, and arrays of the widest layer over the given frames."""


@dataclass(frozen=True)
class Batch:
    """Consecutive windows of an evaluation set.

    Attributes:
        first: index of the batch's first window among all windows.
        start_B: index in the split of each window's first frame.
        frames_BTCHW: all frames of the windows, given ones first, in the field's units.
    """

    first: int
    start_B: torch.Tensor
    frames_BTCHW: torch.Tensor


@dataclass(frozen=True)
class EvaluationSet:
    """The windows of a split, and what is forecast in each: `horizon` closed-loop steps after `warm_up` given frames.

    Attributes:
        split: frames of the split.
        windows: sample and first frame of each window.
        warm_up: number of given frames.
        horizon: number of closed-loop steps.
        measures: what is measured beside the errors.
        climatology: the training split's climatology at the frames of the split.
        starts: the rule by which windows start, as it is reported.
        address: where the split is.
        regions: the regions that are also measured by themselves, by name.
        segments: segments of the split.
    """

    split: Split
    windows: Starts
    warm_up: int
    horizon: int
    measures: Measures
    climatology: Climatology
    starts: str
    address: SplitAddress
    regions: Mapping[str, Region] = field(default_factory=dict)
    segments: Segments = WHOLE

    @classmethod
    def of(
        cls,
        store: FieldStore,
        data: DataConfig,
        *,
        warm_up: int,
        horizon: int,
        split: str = "test",
        starts: str | None = None,
        regions: Mapping[str, Region] | None = None,
        predicted: int | None = None,
        elsewhere: Location | None = None,
    ) -> EvaluationSet:
        """Return the evaluation set of a split.

        Args:
            store: the field store.
            data: the channels, and the number of grid points to coarsen by.
            warm_up: number of given frames.
            horizon: number of closed-loop steps.
            split: name of the split.
            starts: where windows of a series start: `all` (at every frame), `every N` frames, `biweekly` (so that
                the last given frame is the first of a Monday or Thursday), or `apart` (one window after the other,
                without overlap). By default biweekly where frames have dates, `all` where these are more than a day
                apart, and `apart` where there are no dates or too few Mondays and Thursdays. Samples always start
                at their first frame and allow no rule.
            regions: regions that are also measured by themselves, by name.
            predicted: number of predicted channels, the first ones, which are measured in regions; None for all.
            elsewhere: folder where the climatology is kept if the store's folder cannot be written.

        Raises:
            UserError: the samples are too short, the rule does not fit the store, or a region has no grid point, or
                none with a value of a predicted channel.
        """
        points = region_points(store, data.coarsen, regions or {})
        frames = open_split(store, split, data)
        steps = warm_up + horizon
        segments = store.segments(split)
        check_length(frames.shape[1], steps + 1, f"a warm-up of {warm_up} and a horizon of {horizon}", segments)
        windows, rule = windows_by_rule(store, split, frames.shape, steps, warm_up, starts)
        climatology = Climatology.of(store, split, data, elsewhere)
        address = SplitAddress(store.location, store.digest, split, data)
        found = cls._with(store, address, frames, climatology, windows, warm_up, horizon, rule, segments)
        measures = replace(found.measures, regions=points, predicted=predicted)
        for name, of_region in measures.of_regions.items():
            if of_region.mask_CHW is not None and not of_region.mask_CHW.any((1, 2)).all():
                raise UserError(f"region {name} lies outside of the mask of '{store.name}'")
        return replace(found, measures=measures, regions=regions or {})

    @classmethod
    def of_validation(cls, store: FieldStore, config: Configuration) -> EvaluationSet:
        """Return the windows of the validation split on which a training with this configuration is validated."""
        asked = config.validation
        frames = open_split(store, "val", config.data)
        steps, segments = asked.warm_up + asked.horizon, store.segments("val")
        windows = evaluation_windows(frames.shape, store.is_series, steps, asked.windows, segments)
        rule = "as in training"
        climatology = Climatology.of(store, "val", config.data)
        address = SplitAddress(store.location, store.digest, "val", config.data)
        return cls._with(store, address, frames, climatology, windows, asked.warm_up, asked.horizon, rule, segments)

    @classmethod
    def _with(
        cls,
        store: FieldStore,
        address: SplitAddress,
        frames: Split,
        climatology: Climatology,
        windows: Starts,
        warm_up: int,
        horizon: int,
        rule: str,
        segments: Segments,
    ) -> EvaluationSet:
        """Add what is measured on this store: by latitude on a sphere, spectra of whole periodic fields and globes."""
        data, latitude = address.data, store.latitude
        weights = None
        if latitude is not None:
            weights = latitude_weights(latitude.reshape(-1, data.coarsen).mean(1))
        mask_CHW = store.mask(data.coarsen, data.variables)
        is_whole = mask_CHW is None
        around = weights is not None and store.padding == "cylinder"
        measures = Measures(
            weights, spectra=store.padding == "circular" and is_whole, zonal=around and is_whole, mask_CHW=mask_CHW
        )
        return cls(frames, windows, warm_up, horizon, measures, climatology, rule, address, segments=segments)

    @property
    def steps(self) -> int:
        """Number of steps of a window, teacher-forced and closed-loop ones."""
        return self.warm_up + self.horizon

    @property
    def overlap(self) -> float | None:
        """How many consecutive windows share a frame, at least 1; None where windows are independent samples."""
        return overlap_of(self.windows, self.steps, self.segments)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.windows[0])

    def part(self, part: range) -> EvaluationSet:
        """Return some consecutive windows as an evaluation set of their own."""
        sample_N, start_N = self.windows
        return replace(self, windows=(sample_N[part.start : part.stop], start_N[part.start : part.stop]))

    def without_frames(self) -> EvaluationSet:
        """Return the same windows with no frames in memory, as they are sent to other processes."""
        return replace(self, split=self.address.unopened(self.split.shape))

    def reopened(self) -> EvaluationSet:
        """Return the same windows with the split opened anew, in memory where this process has room for it.

        Raises:
            UserError: the store is out of reach, damaged, or another one by now.
        """
        return replace(self, split=self.address.open())

    def batch_size(self, *networks: torch.nn.Module, copies: int = 0) -> int:
        """Return how many windows to evaluate at a time: as many as memory has room for, at most `BATCH_SIZE`.

        Args:
            networks: what computes the forecasts; none for forecasts without a network.
            copies: further copies of the forecasts that are kept, in float64.
        """
        widest_layer = max((weight.shape[0] for each in networks for weight in each.parameters()), default=0)
        channels, height, width = self.split.shape[-3:]
        frames = (FRAME_COPIES + 2 * copies) * (self.steps + 1) * channels + LAYER_COPIES * self.warm_up * widest_layer
        room = SHARE_OF_BUDGET * memory_budget() / (4 * frames * height * width)
        return max(1, min(BATCH_SIZE, int(room)))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Read all windows, in order, so many at a time."""
        first = 0
        for sample_B, start_B in zip(*(part.split(batch_size) for part in self.windows), strict=True):
            yield Batch(first, start_B, self.split.windows(sample_B, start_B, self.steps + 1))
            first += len(sample_B)

    def empty_scores(self, steps: int, channels: int) -> Scores:
        """Return scores to be filled in, for forecasts of all windows.

        Args:
            steps: number of steps of each forecast.
            channels: number of predicted channels.
        """
        height, width = self.split.shape[-2:]
        return Scores.empty(len(self), steps, channels, self.measures, (height, width))
