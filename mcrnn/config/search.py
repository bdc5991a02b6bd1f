"""The section `search` of a YAML file: the budget of a search and how it is spent."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, model_validator

from mcrnn.config.sections import Section

Objective = Literal["error", "parameters", "frames_per_second"]
"""What a search can improve: the validation error (lower is better), the number of parameters (lower) and the frames
that training computes per second (higher)."""

NOT_SEARCHED = (
    "name",
    "data.store",
    "data.variables",
    "data.coarsen",
    "model.channels_out",
    "train.workers",
    "train.max_failures",
    "train.checkpoint_minutes",
    "train.device",
    "train.cuda_graph",
    "train.deterministic",
    "validation.",
    "search.",
    "space.",
)
"""Fields that must be equal in all trials and so cannot be searched; those that end with a dot stand for a section.

They decide what trials are compared by, or how the search itself runs."""


MODELS_PER_PICK = 4
"""Number of trials whose models are kept for each pick of an ensemble, so that there is something to pick from."""
DEFAULT_TRIALS = 20
"""Number of trials where the configuration names none and the sampler is not `grid`."""


class AshaConfig(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934).

    Trials are paused at rungs, and only the best of every `reduction_factor` trials go on from there. The first rung is
    `grace_epochs`, the last the number of epochs, and between the others there is the factor `reduction_factor`. A
    paused trial is taken up from its checkpoint when enough others turn out to be worse.
    """

    grace_epochs: int = Field(3, ge=1, description="Epochs that every trial gets before the first rung.")
    reduction_factor: int = Field(
        3, ge=2, description="One in this many trials goes on at each rung; the factor between two rungs."
    )


class MedianConfig(Section):
    """The median rule (Golovin et al. 2017, Google Vizier).

    A trial is stopped if its best error so far is worse than the median of the other trials at the same epoch.
    """

    grace_epochs: int = Field(3, ge=1, description="Epochs that every trial gets before it can be stopped.")
    grace_trials: int = Field(5, ge=1, description="Number of trials that run to their end before any is stopped.")


class Round(NamedTuple):
    """A round of sequential halving (Karnin et al. 2013)."""

    configurations: int
    """Configurations that compete in it."""
    seeds: int
    """Seeds that each of them has at its end, those of earlier rounds included."""
    trainings: int
    """Trainings of the round."""


class ConfirmConfig(Section):
    """Confirmation: the best configurations of all trials are trained again with other seeds.

    Seeds are given by sequential halving: all configurations get the first ones, the better half of them the next ones,
    and so on, until the last two have all of theirs.
    """

    configurations: int = Field(4, ge=1, description="Number of the best configurations that compete.")
    seeds: int = Field(
        5,
        ge=1,
        description="Trainings that the winner has at the end, with the seeds that follow its trial's own train.seed.",
    )

    def rounds(self, available: int) -> list[Round]:
        """Return the rounds in which the configurations compete until two are left, or the only one.

        The seeds are spread evenly over the rounds. The last round is one of two configurations, because comparing
        them with all their seeds costs little, and the choice between the best two is the hardest.

        Args:
            available: number of configurations that there are, at least 1.
        """
        configurations = min(self.configurations, available)
        count = max(1, math.ceil(math.log2(configurations)))
        rounds, before = [], 0
        for number in range(count):
            left, seeds = math.ceil(configurations / 2**number), max(1, self.seeds * (number + 1) // count)
            rounds.append(Round(left, seeds, left * (seeds - before)))
            before = seeds
        return rounds


class SearchConfig(Section):
    """The budget of the search and how it is spent.

    The search ends when the first of its budgets is spent: `trials`, `hours`, `trial_hours`, `goal` or `failures`. The
    confirmation then follows, for which time is left of `hours` and `trial_hours`. With a larger budget, the same
    command goes on.
    """

    trials: int | None = Field(
        None, ge=1, description="Number of trials; null for 20, or for all points of the grid with sampler grid."
    )
    hours: float | None = Field(
        None,
        gt=0,
        description="Hours that the search and its confirmation may run, all starts added up; null for no limit.",
    )
    trial_hours: float | None = Field(
        None,
        gt=0,
        description="Hours that all trials and the trainings of the confirmation may take, added up; null for no "
        "limit.",
    )
    goal: float | None = Field(
        None,
        gt=0,
        description="Validation error at which the search ends: closed-loop RMSE in units of the training split's "
        "standard deviation. null for no goal.",
    )
    failures: int = Field(
        5,
        ge=1,
        description="Number of failed trials after which the search ends. A trial fails when it was lost or raised an "
        "error more often than train.max_failures.",
    )
    concurrency: int | None = Field(
        None,
        ge=1,
        description="Largest number of trials at a time. null for as many as the cluster has room for, or may get, but "
        "with a sampler that learns no more than a quarter of the trials, but at least 8.",
    )
    gpus: NonNegativeFloat | Literal["auto"] | None = Field(
        None,
        description="GPUs of each worker of a trial, such as 0.25 for four on one GPU. null for one each if there are, "
        "or may be, enough for the workers of a trial, and none otherwise. auto measures some trials on a GPU of their "
        "own before the search, and lets as many share one as its memory, its time and the machine have room for.",
    )
    seed: int = Field(0, ge=0, description="Seed of the sampler.")
    sampler: Literal["auto", "tpe", "gp", "cmaes", "random", "grid", "nsga2"] = Field(
        "tpe",
        description="How the values of a trial are chosen: tpe (tree-structured Parzen estimator), gp (Gaussian "
        "process, slow above some hundred trials), cmaes (evolution strategy, for spaces of numbers), random, grid "
        "(every combination once) or nsga2 (genetic, for several objectives). auto is tpe, or nsga2 with several "
        "objectives.",
    )
    scheduler: Literal["asha", "median", "none"] | None = Field(
        None,
        description="Rule that stops bad trials early. null for asha, or for none with sampler grid or with several "
        "objectives.",
    )
    asha: AshaConfig = AshaConfig()
    median: MedianConfig = MedianConfig()
    objectives: list[Objective] = Field(
        ["error"],
        min_length=1,
        description="What the search improves. Several are improved together: error (validation error), parameters "
        "(their number) and frames_per_second (speed of training).",
    )
    cover: str | None = Field(
        "model.architecture",
        description="Entry of the space each of whose choices is tried once before the sampler decides; null for none.",
    )
    first: list[dict[str, Any]] = Field(
        [],
        description="Configurations that a new search tries first, such as those that were good on other data: for "
        "each a map from fields of the space to values. The sampler draws the values of fields that are not named.",
    )
    warm_start: list[str] = Field(
        [], description="Names of earlier searches from whose trials the sampler learns, as far as they fit the space."
    )
    storage: str | None = Field(
        None,
        description="URL of a database for the Optuna study, such as postgresql://...; null for a journal file in the "
        "folder of the search.",
    )
    keep: int = Field(3, ge=1, description="Number of the best trials whose models are kept.")
    ensemble: int = Field(
        0,
        ge=0,
        description="Number of picks of an ensemble, which is registered beside the best model: models of the search "
        "that forecast best together on the validation windows, of which one may be picked several times. 0 for none.",
    )
    confirm: ConfirmConfig | None = Field(
        None,
        description="Confirmation of the result: the best configurations are trained again with several seeds, and a "
        "model of the configuration with the lowest mean error is registered. null for none.",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> SearchConfig:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives must differ")
        if len(self.objectives) > 1:
            if self.scheduler not in (None, "none"):
                raise ValueError("several objectives leave no early stopping: scheduler must be none")
            if self.confirm or self.goal:
                raise ValueError("confirm and goal go with the error as the only objective")
        elif self.objectives != ["error"]:
            raise ValueError("a single objective is the error")
        elif self.sampler == "nsga2":
            raise ValueError("nsga2 is for several objectives")
        if len(self.objectives) > 1 and self.ensemble:
            raise ValueError("an ensemble goes with the error as the only objective")
        if self.sampler == "grid" and self.first:
            raise ValueError("a grid tries every combination once: leave first empty")
        if len(self.objectives) > 1 and self.sampler == "cmaes":
            raise ValueError("cmaes is for one objective")
        return self

    @property
    def kept_models(self) -> int:
        """Number of the best trials whose models are kept: with an ensemble also those that it may be picked from."""
        return max(self.keep, MODELS_PER_PICK * self.ensemble)

    @property
    def early_stopping(self) -> str:
        """The rule that stops trials early, with the default resolved: asha, median or none."""
        return self.scheduler or ("asha" if self.sampler != "grid" and len(self.objectives) == 1 else "none")
