"""Scores in files: so that the same evaluation is quick the next time, and goes on where it was after a kill."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mcrnn.config.sections import ValidationConfig
from mcrnn.data.store import FieldStore
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.metrics import ARRAYS, Scores
from mcrnn.models.ensemble import Ensemble
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.location import Location

SCORES = "reports/.cache"
"""Folder below the storage root where scores are kept."""
VERSION = 2
"""Version of the files; another one makes evaluations compute the scores anew."""
LATER_FIELDS = ("mask", "min_max", "logarithms", "channel_units", "level_units", "grid_units", "differences")
"""Fields of `FieldDescription` that are no part of a key where they are empty: earlier versions did not have them."""
LATER_SETTINGS = {"model": {"width_multiple"}, "train": {"cuda_graph"}}
"""Fields of a configuration that change no score, and are no part of a key: earlier versions did not have them."""
MODEL = ""
"""Name of a model's forecasts, beside the names of baselines. In files, names begin those of arrays."""


@dataclass(frozen=True)
class Scored:
    """The scores of forecasts of some windows, and what else was measured of them.

    Attributes:
        scores: the scores.
        frames_per_second: frames that the inference alone computes per second in one process; NaN for baselines.
        spread_T: spread at each step, see `mcrnn.evaluation.spread`; None unless of an ensemble.
    """

    scores: Scores
    frames_per_second: float = float("nan")
    spread_T: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[Scored]) -> Scored:
        """Return what was measured in consecutive parts of the windows as that of all windows.

        The result follows from the parts and their order alone, wherever they were scored.
        """
        if len(parts) == 1:
            return parts[0]
        windows_P = np.array([each.scores.filled for each in parts])
        per_frame_P = 1 / np.array([each.frames_per_second for each in parts])
        spreads = [each.spread_T for each in parts if each.spread_T is not None]
        spread_T = np.sqrt(windows_P @ np.square(spreads) / windows_P.sum()) if spreads else None
        speed = float(windows_P.sum() / (windows_P @ per_frame_P))
        return cls(Scores.joined([each.scores for each in parts]), speed, spread_T)


Forecasts = dict[str, Scored]
"""What was measured of forecasts, by their name: `MODEL`, or those of the baselines."""


def serialize(forecasts: Forecasts) -> bytes:
    """Return a file of what was measured, without pickle."""
    arrays: dict[str, Any] = {}
    for name, scored in forecasts.items():
        start = _start(name)
        arrays[f"{start}frames_per_second"] = np.float64(scored.frames_per_second)
        suffixed = {"": scored.scores} | {f".{i}": each for i, each in enumerate(scored.scores.regions.values())}
        for suffix, scores in suffixed.items():
            found = {f"{start}{array}{suffix}": getattr(scores, array) for array in ARRAYS}
            arrays |= {key: values for key, values in found.items() if values is not None}
        if scored.spread_T is not None:
            arrays[f"{start}spread"] = scored.spread_T
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def deserialize(data: bytes, names: Iterable[str], regions: Iterable[str]) -> Forecasts:
    """Return what `serialize` has written.

    Args:
        data: the file.
        names: names of the forecasts.
        regions: names of the regions, in their order.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    try:
        content = np.load(io.BytesIO(data), allow_pickle=False)

        def read(start: str, suffix: str) -> Scores:
            arrays = {name: content.get(start + name + suffix) for name in ARRAYS}
            return Scores(**arrays, filled=len(content[f"{start}squared"]))

        found = {}
        for name in names:
            start = _start(name)
            scores = read(start, "")
            scores.regions = {region: read(start, f".{number}") for number, region in enumerate(regions)}
            speed = float(content[f"{start}frames_per_second"])
            found[name] = Scored(scores, speed, content.get(f"{start}spread"))
        return found
    except (KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"no scores: {error}") from None


def read_scores(folder: Location, key: str, names: Iterable[str], regions: Iterable[str]) -> Forecasts | None:
    """Return scores that are kept in a folder; None where there are none that can be read."""
    try:
        return deserialize(folder.read(key), names, regions)
    except (ValueError, OSError):
        return None


def _start(name: str) -> str:
    return f"{name}:" if name else ""


def key_of_model(
    model: TrainedModel, store: FieldStore, evaluation_set: EvaluationSet, weighting: ValidationConfig
) -> str:
    """Return a hash of all that the scores of a model depend on.

    Args:
        model: the model.
        store: the store that it is evaluated on.
        evaluation_set: the windows.
        weighting: the weights of the channels, which the spread of an ensemble depends on.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.network.state_dict().items()):
        digest.update(name.encode() + weight.cpu().numpy().tobytes())
    settings = [
        VERSION,
        store.digest,
        model.config.data.model_dump(),
        {key: value for key, value in asdict(model.field).items() if key not in LATER_FIELDS or value},
        evaluation_set.warm_up,
        evaluation_set.horizon,
        model.config.model.model_dump(exclude=LATER_SETTINGS["model"]),
        evaluation_set.starts,
        *_regions(evaluation_set),
    ]
    if isinstance(model, Ensemble) and weighting.channel_weights is not None:
        settings.append({"channel_weights": weighting.channel_weights})  # which the spread depends on
    if evaluation_set.measures.zonal:
        settings.append("zonal spectra")
    if (precision := model.config.train.precision) not in ("float32", "float64"):
        settings.append(precision)  # earlier versions have scored all models in PyTorch's default
    if isinstance(model, Ensemble):
        settings += [each.config.model_dump(exclude=LATER_SETTINGS) for each in model.members]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def key_of_baselines(store: FieldStore, evaluation_set: EvaluationSet, channels: int) -> str:
    """Return a hash of all that the scores of the baselines depend on.

    Args:
        store: the store that they are evaluated on.
        evaluation_set: the windows.
        channels: number of predicted channels.
    """
    data = evaluation_set.address.data
    settings = [
        "baselines",
        VERSION,
        store.digest,
        store.attributes["boundary"],
        data.coarsen,
        store.channel_indices(data.variables),
        channels,
        evaluation_set.warm_up,
        evaluation_set.horizon,
        evaluation_set.starts,
        *_regions(evaluation_set),
    ]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]


def _regions(evaluation_set: EvaluationSet) -> list[Any]:
    """Return the regions, a list because their scores are kept by their position.

    Without any it is empty, so that the key is that of scores which an earlier version has kept.
    """
    regions = [[name, str(region)] for name, region in evaluation_set.regions.items()]
    return [regions] if regions else []
