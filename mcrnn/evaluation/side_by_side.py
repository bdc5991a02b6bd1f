"""Evaluate several models on the same windows, those of the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mcrnn.data.region import Region
from mcrnn.device import choose_device
from mcrnn.errors import UserError
from mcrnn.evaluation.compatibility import DataIdentity, check_same_data
from mcrnn.evaluation.kept_scores import SCORES
from mcrnn.evaluation.parts import PartScorer, score_here
from mcrnn.evaluation.result import EvaluationResult, evaluate_model
from mcrnn.evaluation.selection import SelectedModel
from mcrnn.storage.root import Storage

Evaluated = tuple[SelectedModel, EvaluationResult]


@dataclass(frozen=True)
class Windows:
    """What is the same for all models, as the options of the commands say it."""

    store: str | None = None
    """Field store; None for that of the training."""
    warm_up: int | None = None
    horizon: int | None = None
    """Given frames and closed-loop steps; None for those of the first model's validation."""
    starts: str | None = None
    other_data: bool = False
    """Whether the store may be another than that of the training."""
    device: str | None = None
    regions: Mapping[str, Region] = field(default_factory=dict)
    """Regions that are also measured by themselves, by name."""


def evaluate_side_by_side(
    selected: Sequence[SelectedModel],
    storage: Storage,
    windows: Windows,
    failures: list[str],
    score_parts: PartScorer = score_here,
) -> list[Evaluated]:
    """Evaluate models one after the other, each with a progress bar.

    Args:
        selected: the models.
        storage: the storage root, with the scores of earlier evaluations.
        windows: the windows.
        failures: gets a message for each model that cannot be evaluated, or not on the data of the first one.
        score_parts: scores the windows, in this process or on workers.

    Raises:
        UserError: the device cannot be used, or no model could be evaluated.
    """
    device = choose_device(windows.device, "--device")
    evaluated: list[Evaluated] = []
    for index, each in enumerate(selected):
        first = evaluated[0][1] if evaluated else None
        try:
            each.model.network.to(device)
            result = evaluate_model(
                each.uri,
                each.model,
                storage,
                store=windows.store,
                warm_up=windows.warm_up or (first.evaluation_set.warm_up if first else None),
                horizon=windows.horizon or (first.evaluation_set.horizon if first else None),
                starts=windows.starts,
                regions=windows.regions,
                other_data=windows.other_data,
                cache=storage.location(SCORES),
                beside=first,
                score_parts=score_parts,
                title=each.uri if len(selected) == 1 else f"{each.uri}, model {index + 1} of {len(selected)}",
            )
            if first:
                check_same_data(
                    DataIdentity.of_evaluation(result.model, result.store),
                    DataIdentity.of_evaluation(first.model, first.store),
                    f"'{each.uri}' cannot be in one table with '{first.uri}'",
                    "Evaluate it by itself",
                )
            evaluated.append((each, result))
        except UserError as error:
            failures.append(str(error) if each.uri in str(error) else f"{each.uri}: {error}")
    if not evaluated:
        raise UserError("\n".join(failures))
    return evaluated
