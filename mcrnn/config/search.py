"""How a search spends its budget: the section `search` of a YAML file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mcrnn.config.sections import Section

Objective = Literal["error", "parameters", "frames_per_second"]


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
    "train.deterministic",
    "validation.",
    "search.",
    "space.",
)
"""Fields that must be equal in all trials and so cannot be searched."""


class AshaConfig(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), in epochs."""

    grace_epochs: int = Field(3, ge=1, description="epochs that every trial gets")
    reduction_factor: int = Field(3, ge=2, description="one in so many trials goes on at each rung")


class MedianConfig(Section):
    """The median rule (Golovin et al. 2017, Vizier): stopped is what is worse than the median of the others so far."""

    grace_epochs: int = Field(3, ge=1, description="epochs that every trial gets")
    grace_trials: int = Field(5, ge=1, description="trials that run to their end before any is stopped")


class ConfirmConfig(Section):
    """The best configuration of each architecture, trained again."""

    seeds: int = Field(5, ge=1, description="trainings of each, with the seeds from train.seed on")


class SearchConfig(Section):
    """The budget of the search and how it is spent."""

    trials: int | None = Field(None, ge=1, description="20 by default; of a grid, all")
    hours: float | None = Field(None, gt=0, description="that the search may run, over all its starts")
    trial_hours: float | None = Field(None, gt=0, description="that its trials may run, added up")
    goal: float | None = Field(None, gt=0, description="the search ends when an error is as low")
    failures: int = Field(5, ge=1, description="the search ends after so many trials that failed")
    concurrency: int | None = Field(None, ge=1, description="trials at a time; by default as many as there is room for")
    gpus: float | None = Field(
        None, ge=0, description="of a trial's worker, such as 0.125; by default 1 where there is one for each"
    )
    seed: int = Field(0, ge=0)
    sampler: Literal["tpe", "random", "grid", "nsga2"] = "tpe"
    scheduler: Literal["asha", "median", "none"] | None = Field(
        None, description="what stops trials early: asha by default, none for a grid or several objectives"
    )
    asha: AshaConfig = AshaConfig()
    median: MedianConfig = MedianConfig()
    objectives: list[Objective] = Field(["error"], min_length=1, description="what is made better, all at once")
    cover: str | None = Field(
        "model.architecture", description="entry each of whose choices is tried before the sampler decides"
    )
    warm_start: list[str] = Field([], description="names of earlier searches whose trials the sampler may learn from")
    storage: str | None = Field(
        None, description="URL of a database for the study, such as postgresql://...; by default a journal beside it"
    )
    keep: int = Field(3, ge=1, description="models that are kept, the best")
    confirm: ConfirmConfig | None = Field(None, description="training again of the best, with several seeds")

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
        return self

    @property
    def early_stopping(self) -> str:
        """asha, median or none."""
        return self.scheduler or ("asha" if self.sampler != "grid" and len(self.objectives) == 1 else "none")
