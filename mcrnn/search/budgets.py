"""The budgets of a search: how many trials it runs, and why it proposes no more of them."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from mcrnn.config.search import SearchConfig
from mcrnn.search.study import finished_trials, search_trials
from mcrnn.search.trial_report import TrialEnd


def budget(study: optuna.Study, config: SearchConfig) -> int:
    """Return the number of trials of a search: `search.trials`, by default a whole grid, or 20.

    A grid has no more trials than combinations: they are all in the study when it is opened.
    """
    if config.sampler == "grid":
        combinations = len(search_trials(study))
        return combinations if config.trials is None else min(config.trials, combinations)
    return 20 if config.trials is None else config.trials


def stop_reason(study: optuna.Study, config: SearchConfig, hours: float = 0.0) -> str | None:
    """Return why a search has come to its end, None where it goes on.

    Args:
        study: study of the search.
        config: section `search` of the configuration, with the budgets.
        hours: hours that the search has run, over all its starts; what the study has recorded, if that is more.
    """
    ended = finished_trials(study)
    failed = sum(t.user_attrs.get("end") == TrialEnd.FAILED for t in ended)
    if len(ended) >= budget(study, config):
        return "all trials are done"
    if config.hours is not None and max(study.user_attrs.get("hours", 0.0), hours) >= config.hours:
        return f"its {config.hours:g} hours are spent"
    if config.trial_hours is not None and sum(_seconds(t) for t in ended) / 3600 >= config.trial_hours:
        return f"its {config.trial_hours:g} trial hours are spent"
    if config.goal is not None and any(t.value is not None and t.value <= config.goal for t in ended):
        return f"the goal of {config.goal:g} is reached"
    return f"{failed} trials failed" if failed >= config.failures else None


def _seconds(trial: FrozenTrial) -> float:
    """Return how long a trial ran, in seconds, as Tune counted it; 0 where that is not known."""
    return trial.user_attrs.get("result", {}).get("time_total_s", 0.0)
