"""How much each searched field matters for the validation error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from mcrnn.config.search_yaml import search_of
from mcrnn.search.attributes import VALUES_ATTRIBUTE
from mcrnn.search.parameters import SHARE_SUFFIX, distribution, parameter_name, parameters_of
from mcrnn.search.study import optuna_quiet
from mcrnn.search.study_reader import SeenTrial, State
from mcrnn.training.session import PENALTY


def importance(study: optuna.Study) -> dict[str, float]:
    """Return the share of the spread of the errors that each hyperparameter explains, the largest first.

    The method is PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255).

    Returns:
        Shares by name of Optuna's parameter; empty with fewer than four complete trials, with several objectives, and
        where all trials are alike.
    """
    done = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    if len(done) < 4 or len(study.directions) > 1:
        return {}
    try:
        with optuna_quiet():
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
        return {name.removesuffix(SHARE_SUFFIX): share for name, share in importances.items()}
    except (ValueError, RuntimeError):  # Optuna raises them where all trials are alike
        return {}


def importance_of(configuration: dict[str, Any], trials: Iterable[SeenTrial]) -> dict[str, float]:
    """Return the same for trials that were read without Optuna.

    Args:
        configuration: content of the search's `configuration.json`.
        trials: its trials.
    """
    search = search_of(configuration)
    if len(search.search.objectives) > 1:
        return {}
    study = optuna.create_study()
    for trial in trials:
        values = trial.attributes.get(VALUES_ATTRIBUTE)
        if trial.state != State.COMPLETE or not values:
            continue
        active = {path: search.space.active_index(path, values) for path in search.space if path in values}
        with contextlib.suppress(ValueError):  # a value is outside the range, as after a change by hand
            study.add_trial(
                create_trial(
                    params=parameters_of(search, values),
                    distributions={
                        parameter_name(search, path, index): distribution(search.space.entries[path][index])
                        for path, index in active.items()
                        if index is not None
                    },
                    value=PENALTY if trial.best is None else trial.best,
                )
            )
    return importance(study)
