"""The trials of a search on Tune's side: how they are run, and what runs in the actor of one."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from mcrnn.config.space import Search
from mcrnn.data.description import FieldDescription
from mcrnn.errors import NotEnoughMemoryError, UserError
from mcrnn.models import model_cost, with_resolved_width
from mcrnn.runners.ray_train import root_cause, run_distributed
from mcrnn.runners.tune_trial import run_in_tune
from mcrnn.search import confirmation
from mcrnn.storage.lease import Lease
from mcrnn.storage.location import Location
from mcrnn.storage.retry import enable_retries
from mcrnn.tracking.run_folder import END_FILE, RECORD_FILE, read_json, read_metrics
from mcrnn.training.run import TrainingRun
from mcrnn.training.session import OBJECTIVE, PENALTY, End


@dataclass(frozen=True)
class Trials:
    """How Tune runs trials, whichever they are."""

    trial: Any
    folder: str
    """for Tune's own state, from which we never restore"""
    lease: Lease
    resources: dict[str, float]
    concurrency: int
    max_failures: int

    def run(self, name: str, callbacks: list[Any], *, proposals: list[Any] | None = None, **how: Any) -> None:
        """Run them to the end, in a thread, for Tune would handle the signals itself."""
        tuner = tune.Tuner(
            tune.with_resources(self.trial, self.resources),
            param_space={} if proposals is None else {"proposal": tune.grid_search(proposals)},
            tune_config=tune.TuneConfig(
                num_samples=-1 if proposals is None else 1,  # the searcher says when it is finished
                max_concurrent_trials=self.concurrency,
                reuse_actors="CPU" in self.resources,
                **how,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=self.folder,
                callbacks=callbacks,
                failure_config=tune.FailureConfig(max_failures=self.max_failures),
                verbose=0,
            ),
        )
        failure: list[BaseException] = []

        def fit() -> None:
            try:
                tuner.fit()
            except BaseException as error:
                failure.append(error)

        for name in ("ray.tune", "ray.air"):  # whose tracebacks of lost processes say less than our own lines
            logging.getLogger(name).setLevel(logging.CRITICAL)
        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)  # a signal is handled between
            self.lease.renew()
        if failure:
            raise failure[0]


def run_trial(
    proposal: dict[str, Any],
    *,
    opened: tuple[Search, FieldDescription, Location],
    data: list[Any],
    cluster: tuple[float, Any],
) -> None:
    """One trial, in a Tune actor: trains there, or drives the workers of Ray Train.

    What ends it is reported, not raised, so that only lost processes are tried again.
    """
    enable_retries()
    search, field, folder = opened
    gpus, flag = cluster
    proposal = proposal.get("proposal", proposal)
    if "retrain" in proposal:
        name, values = proposal["retrain"]
        place, kind = f"{confirmation.FOLDER}/{name}", "confirmation"
    else:
        values, name, kind = proposal["values"], trial_name(proposal["number"]), "trial"
        place = f"trials/{proposal['number']:04d}"
    nothing = {OBJECTIVE: PENALTY, "best": PENALTY, "diverged": 0.0}
    try:
        job = TrainingRun(
            config=with_resolved_width(search.configuration(values), field.frame_shape),
            field=field,
            folder=folder.child(place),
            run_name=name,
            tags=(
                ("mcrnn.kind", kind),
                ("mcrnn.search", search.name),
                ("mcrnn.searched", ", ".join(values)),
                ("mcrnn.values", json.dumps(values, sort_keys=True)),
            ),
        )
        costs = model_cost(job.config.model, field.frame_shape)
        known = {"epochs": job.config.train.epochs, "parameters": costs.parameters}
        record = read_json(job.folder, RECORD_FILE)
        if record is not None and record["tags"]["mcrnn.values"] != dict(job.tags)["mcrnn.values"]:
            job.folder.clear()  # of a proposal that was lost with its driver
        if read_json(job.folder, END_FILE) is None:
            if job.config.train.workers == 1:
                run_in_tune(job, ray.get(data[0]), flag)
            else:
                from ray.tune.integration.ray_train import TuneReportCallback

                try:
                    run_distributed(job, data[0], gpus=gpus, stop=flag, callbacks=[TuneReportCallback()])
                except Exception as error:
                    if (cause := root_cause(job, error)) is error:
                        raise
                    raise cause from error
        else:  # but the driver was lost before it heard of all of it
            for metrics in read_metrics(job.folder):
                tune.report(metrics | known)
        ended = read_json(job.folder, END_FILE)
        by_epoch = ray.get(flag.ended_at.remote(name)) if job.config.train.workers > 1 else None
        if by_epoch is not None:  # stopped early: what counts is what it was then
            metrics = next(each for each in read_metrics(job.folder) if each["epoch"] == by_epoch)
            tune.report(metrics | known)
        elif ended is None:
            tune.report(nothing | {"interrupted": 1.0})
        elif ended["end"] == End.OUT_OF_MEMORY:
            tune.report(nothing | {"epoch": 0, "out_of_memory": 1.0})
    except NotEnoughMemoryError:
        tune.report(nothing | {"epoch": 0, "out_of_memory": 1.0})
    except Exception as error:
        if workers_were_lost(error):
            raise
        log = folder.child(place)
        log.write("error.txt", traceback.format_exc().encode())
        where = "" if isinstance(error, UserError) else f" ({type(error).__name__}; see {log.url}/error.txt)"
        tune.report(nothing | {"mistake": f"{name}: {error}{where}"})


def trial_name(number: int) -> str:
    """Of a trial's run."""
    return f"trial-{number}"


def workers_were_lost(error: BaseException) -> bool:
    """Whether a training on Ray Train failed because its processes were lost, rather than by what they ran."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return False
    return all(isinstance(each, ray.exceptions.RayError) for each in failures.values())
