"""A search from its file to the registered model.

The driver: Tune runs the trials that the study proposes, each trial keeps its checkpoints under
`searches/NAME/trials/`, the best are trained again with several seeds where that is asked for, and the best model
goes to the registry. The study and the folder are all the state there is: a search that is run again goes on from
them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from rich.console import Console

from mcrnn import confirmation, folders, model_directory, registry, tracking
from mcrnn.checks import check
from mcrnn.cluster import connected
from mcrnn.errors import NotEnoughMemoryError, UserError, did_you_mean
from mcrnn.evaluation import Exam, score_baselines
from mcrnn.fields import FieldStore
from mcrnn.interrupts import on_stop
from mcrnn.lease import Lease
from mcrnn.lineage import masked
from mcrnn.model_directory import FieldDescription, TrainedModel
from mcrnn.models import sized, summary
from mcrnn.outbox import Outbox
from mcrnn.progress import Progress
from mcrnn.registry import TEST_METRICS
from mcrnn.scores import rmse, rmse_normalized
from mcrnn.search_report import optuna_quiet
from mcrnn.space import Search
from mcrnn.storage import Location, Storage
from mcrnn.study import (
    JOURNAL,
    STUDY,
    Journal,
    StudyScheduler,
    StudySearcher,
    TrialEnd,
    budget,
    open_study,
    spent,
    tried,
)
from mcrnn.tracking import Mirrors, Run, Tracker
from mcrnn.training import OBJECTIVE, PENALTY, End
from mcrnn.windows import FieldData
from mcrnn.worker import (
    CHECKPOINT_FOLDER,
    END_FILE,
    MODEL_FOLDER,
    Job,
    explained,
    gpus_for,
    new_stop_flag,
    read_json,
    read_metrics,
    run_distributed,
    run_in_tune,
)

SUMMARY_FILE = "summary.json"
LEASE = "lock.json"
MAY_CHANGE = (
    "search.trials",
    "search.hours",
    "search.trial_hours",
    "search.goal",
    "search.failures",
    "search.concurrency",
    "search.gpus",
    "search.keep",
    "search.confirm",
    "search.confirm.seeds",
    "train.max_failures",
    "train.checkpoint_minutes",
    "train.workers",
)
"""when a search is continued: budgets, and how it is done"""


@dataclass(frozen=True)
class OpenSearch:
    """A search and the folder that it lives in."""

    search: Search
    storage: Storage
    folder: Location
    store: FieldStore
    study: optuna.Study
    journal: Journal

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.url.rsplit("/", 1)[-1]

    @property
    def model_name(self) -> str:
        """Name in the registry and of the experiment."""
        return f"mcrnn-{self.search.name}"

    @property
    def finished(self) -> bool:
        """Whether the budget is spent and the winner registered."""
        summary = self.summary
        if summary is None or spent(self.study, self.search.search) is None:
            return False
        asked = self.search.search.confirm
        return asked is None or summary.get("seeds", 0) >= asked.seeds

    @property
    def summary(self) -> dict[str, Any] | None:
        """What was written down when the search ended, None before."""
        return read_json(self.folder, SUMMARY_FILE)

    def trial_folder(self, number: int) -> Location:
        """Where a trial keeps its state and model."""
        return self.folder.child(f"trials/{number:04d}")


def open_search(search: Search, storage: Storage, *, new: bool) -> OpenSearch:
    """Check a search against its store and open its folder, or a new one beside it.

    Raises:
        UserError: the store cannot be used, its samples are too short, or the folder holds another search.
    """
    store = check(search, storage)
    parent = storage.location("searches")
    folder = parent.child(folders.choose(parent, search.name, new=new))
    content = json.loads(masked(json.dumps(search.content())))
    folders.claim(folder, content | {"store_digest": store.digest}, MAY_CHANGE)
    earlier = [_earlier(name, parent) for name in search.search.warm_start]
    journal = Journal.open(folder)
    return OpenSearch(search, storage, folder, store, open_study(journal, search, earlier), journal)


def _earlier(name: str, searches: Location) -> optuna.Study:
    journal = Journal.open(searches.child(name))
    if not journal.file.exists():
        known = [key.split("/")[0] for key in searches.sizes() if key.count("/") == 1 and key.endswith(JOURNAL)]
        raise UserError(
            f"search.warm_start: there is no search '{name}' with a journal here{did_you_mean(name, known)}"
        )
    study = optuna.load_study(study_name=STUDY, storage=journal.storage())
    study.study_name = name
    return study


def run(opened: OpenSearch) -> None:
    """Run the trials that are left and the confirmation, then register the best model and write the summary.

    Raises:
        UserError: no trial produced a model, a configuration cannot be trained, or the search runs already.
        KeyboardInterrupt: a stop was asked for, and checkpoints written.
    """
    console = Console()
    search, folder = opened.search, opened.folder
    where = opened.storage.show(folder)
    lease = Lease(folder, LEASE, "search")
    lease.acquire()
    with contextlib.ExitStack() as at_end:
        at_end.callback(lease.release)
        tracker = Tracker.open(opened.storage, opened.model_name)
        left = max(0, budget(opened.study, search.search) - len(tried(opened.study)))
        console.print(f"search {opened.name}: {left} trials to run, in {where}", highlight=False, soft_wrap=True)
        mirrors = Mirrors(tracker)
        at_end.callback(mirrors.close)
        copies = Outbox(f"'{folder.url}'")
        at_end.callback(copies.close)
        running = _Running(opened, mirrors, copies, lease, console)
        mirrors.parent = running.begin()
        status = "KILLED"
        try:
            if spent(opened.study, search.search) is None or _unfinished_confirmation(opened):
                _run_all(running)
            running.end_runs()
            best = best_trial(opened)
            if best is None:
                raise UserError(
                    f"no trial of '{opened.name}' has produced a model; see {where}/trials for their errors"
                )
            _finish(running, best)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            running.tell()
            mirrors.update(folder, status)
            if status == "FINISHED":
                mirrors.wait()
                copies.wait()


@dataclass
class _Running:
    """A search that is being run, and what it tells others of itself."""

    opened: OpenSearch
    mirrors: Mirrors
    copies: Outbox
    """of the journal, to object storage"""
    lease: Lease
    console: Console

    def begin(self) -> str:
        """Begin the search's run in MLflow, or go on with it; returns its id."""
        opened = self.opened
        content = read_json(opened.folder, folders.CONTENT_FILE)
        fixed = {key: content[key] for key in ("data", "model", "train", "validation", "search") if key in content}
        tracking.write_record(
            opened.folder,
            opened.name,
            tags={"mcrnn.kind": "search", "mcrnn.searched": ", ".join(opened.search.space)},
            params=fixed,
            files={"search.json": content},
        )
        return self.mirrors.now(opened.folder, "RUNNING").run_id

    def tell(self) -> None:
        """Copy the study to where the search lives, soon."""
        if self.opened.journal.is_copied:
            self.copies.put("journal", self.opened.journal.copy)

    def end_runs(self) -> None:
        """End the runs of all trainings that ended, also those whose driver was killed before it could."""
        ended = {self.opened.trial_folder(t.number): t.user_attrs.get("end") for t in tried(self.opened.study)}
        ended |= {
            each.folder(self.opened.folder): None
            for each in confirmation.planned(self.opened.search, results(self.opened))
            if each.finished(self.opened.folder)
        }
        for folder, end in ended.items():
            if not tracking.settled(folder):
                self.mirrors.update(folder, "FAILED" if end == TrialEnd.FAILED else "FINISHED")


def _unfinished_confirmation(opened: OpenSearch) -> bool:
    plan = confirmation.planned(opened.search, results(opened))
    return any(not each.finished(opened.folder) for each in plan)


def _run_all(running: _Running) -> None:
    """The trials that are left, then the confirmation."""
    opened, console = running.opened, running.console
    search, folder, store = opened.search, opened.folder, opened.store
    first = search.first_configuration()
    workers = first.train.workers
    with connected() as cpus, contextlib.ExitStack() as until_end:
        if workers > cpus:
            raise UserError(f"train.workers {workers} needs as many CPUs, there are {cpus}")
        in_cluster = ray.cluster_resources().get("GPU", 0)
        gpus = gpus_for(first.train, in_cluster, search.search.gpus)
        room = min(cpus, int(in_cluster / gpus)) if gpus else cpus
        flag = new_stop_flag()
        searcher = StudySearcher(opened.study, search, running.tell)
        if workers > 1:
            searcher.end_training = lambda number, epoch: flag.end.remote(_name(number), epoch)
        tune_folder = until_end.enter_context(tempfile.TemporaryDirectory(prefix="mcrnn-tune-"))

        def stop() -> None:
            searcher.ending = "it was interrupted"
            flag.request.remote()

        until_end.enter_context(on_stop(stop))
        trials = _Trials(
            tune.with_parameters(
                _trial,
                opened=(search, FieldDescription.of(store, first.data), folder),
                # in a list, so that Tune hands on the reference and all trials of a node share one copy
                data=[ray.put(FieldData.load(store, first.data))],
                cluster=(gpus, flag),
            ),
            tune_folder,
            running.lease,
            # the driver of a trial with several workers takes no CPU, or its workers would wait for it for ever
            {"CPU": 1, **({"GPU": gpus} if gpus else {})} if workers == 1 else {"node:__internal_head__": 0.001},
            min(search.search.concurrency or room, max(1, room // workers)),
            first.train.max_failures if workers == 1 else 0,
        )
        ending = _Ending(running, stop)
        if spent(opened.study, search.search) is None:
            done, all_of_them = len(tried(opened.study)), budget(opened.study, search.search)
            with Progress(search, opened.name, console, budget=all_of_them, done=done) as progress:
                trials.run("ray", [ending, progress], search_alg=searcher, scheduler=StudyScheduler(searcher))
        if searcher.mistake:
            raise UserError(f"a trial cannot be trained, so the search has stopped: {searcher.mistake}")
        why = spent(opened.study, search.search)
        if why is None:
            raise KeyboardInterrupt
        console.print(f"{opened.name}: {why}", highlight=False, soft_wrap=True)
        _confirm(running, trials, searcher)


def _confirm(running: _Running, trials: _Trials, searcher: StudySearcher) -> None:
    opened, folder = running.opened, running.opened.folder
    plan = confirmation.planned(opened.search, results(opened))
    missing = [each for each in plan if not each.finished(folder)]
    if not missing:
        return
    seeds = opened.search.search.confirm.seeds if opened.search.search.confirm else 0
    running.console.print(
        f"confirmation: {len(missing)} trainings, {seeds} seeds of each of {len(plan) // seeds}", highlight=False
    )
    proposals = [{"retrain": (each.name, each.values)} for each in missing]
    trials.run("ray-confirmation", [_Confirmed(running, searcher)], proposals=proposals)
    if searcher.mistake:
        raise UserError(f"a configuration cannot be trained again: {searcher.mistake}")
    left = [each.name for each in plan if not each.finished(folder)]
    if left and searcher.ending is None:
        raise UserError(f"the processes of {', '.join(left)} were lost too often; the same command tries again")
    if left:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class _Trials:
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


def _trial(
    proposal: dict[str, Any],
    *,
    opened: tuple[Search, FieldDescription, Location],
    data: list[Any],
    cluster: tuple[float, Any],
) -> None:
    """One trial, in a Tune actor: trains there, or drives the workers of Ray Train.

    What ends it is reported, not raised, so that only lost processes are tried again.
    """
    search, field, folder = opened
    gpus, flag = cluster
    proposal = proposal.get("proposal", proposal)
    if "retrain" in proposal:
        name, values = proposal["retrain"]
        place, kind = f"{confirmation.FOLDER}/{name}", "confirmation"
    else:
        values, name, kind = proposal["values"], _name(proposal["number"]), "trial"
        place = f"trials/{proposal['number']:04d}"
    nothing = {OBJECTIVE: PENALTY, "best": PENALTY, "diverged": 0.0}
    try:
        job = Job(
            config=sized(search.configuration(values), field.frame_shape),
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
        costs = summary(job.config.model, field.frame_shape)
        known = {"epochs": job.config.train.epochs, "parameters": costs.parameters}
        record = read_json(job.folder, tracking.RECORD_FILE)
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
                    if (cause := explained(job, error)) is error:
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


def _name(number: int) -> str:
    """Of a trial's run."""
    return f"trial-{number}"


def workers_were_lost(error: BaseException) -> bool:
    """Whether a training on Ray Train failed because its processes were lost, rather than by what they ran."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return False
    return all(isinstance(each, ray.exceptions.RayError) for each in failures.values())


class _Ending(tune.Callback):
    """What is to be done when a trial ends: its MLflow run, its files, and the search where it was a mistake."""

    def __init__(self, running: _Running, stop: Any) -> None:
        self.opened, self.mirrors, self.stop = running.opened, running.mirrors, stop

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks with its own state, from which we never restore."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:
        """Tells MLflow of an epoch."""
        self._run(trial, "RUNNING")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Ends the run, which the trial cannot do itself where it is stopped, and removes what nobody needs."""
        result = trial.last_result or {}
        if result.get("mistake"):
            self.stop()
        status = "KILLED" if result.get("interrupted") else "FAILED" if result.get("mistake") else "FINISHED"
        self._run(trial, status)
        tidy(self.opened)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Ends the run."""
        self._run(trial, "FAILED")

    def _run(self, trial: Any, status: str) -> None:
        self.mirrors.update(self.opened.trial_folder(trial.config["number"]), status)


class _Confirmed(tune.Callback):
    """Follows the confirmation."""

    def __init__(self, running: _Running, searcher: StudySearcher) -> None:
        self.opened, self.mirrors, self.console = running.opened, running.mirrors, running.console
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:
        """Tells MLflow of an epoch."""
        name, _values = trial.config["proposal"]["retrain"]
        self.mirrors.update(self.opened.folder.child(f"{confirmation.FOLDER}/{name}"), "RUNNING")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A line, and the end of the run."""
        result = trial.last_result or {}
        name, values = trial.config["proposal"]["retrain"]
        if result.get("mistake"):
            self.searcher.mistake = result["mistake"]
        folder = self.opened.folder.child(f"{confirmation.FOLDER}/{name}")
        self.mirrors.update(folder, "KILLED" if result.get("interrupted") else "FINISHED")
        if result.get("interrupted"):
            return
        folder.child(CHECKPOINT_FOLDER).clear()
        architecture = self.opened.search.configuration(values).model.architecture
        self.console.print(
            f"{architecture}, {name}: error {result.get('best', PENALTY):.4f}", highlight=False, soft_wrap=True
        )


def tidy(opened: OpenSearch) -> None:
    """Remove the checkpoints of trials that ended, and the models of all but the best."""
    ended = {t.number for t in tried(opened.study)}
    kept = {t.number for t in results(opened)[: opened.search.search.keep]}
    trials = opened.folder.child("trials")
    for folder in {tuple(key.split("/")[:2]) for key in trials.sizes()}:
        number, part = int(folder[0]), folder[1]
        if (part == CHECKPOINT_FOLDER and number in ended) or (part == MODEL_FOLDER and number in ended - kept):
            trials.child("/".join(folder)).clear()


def results(opened: OpenSearch) -> list[FrozenTrial]:
    """Trials that ended well, the best first; those that ran to their end before those stopped early."""
    good = [t for t in tried(opened.study) if t.user_attrs.get("end") in (TrialEnd.FINISHED, TrialEnd.STOPPED)]
    return sorted(good, key=lambda t: (t.state != TrialState.COMPLETE, t.user_attrs["result"]["best"], t.number))


def best_trial(opened: OpenSearch) -> FrozenTrial | None:
    """The best that has a model, None where no trial has one."""
    kept = (t for t in results(opened) if model_directory.exists(opened.trial_folder(t.number).child(MODEL_FOLDER)))
    return next(kept, None)


def _finish(running: _Running, best: FrozenTrial) -> None:
    """Judge and register the best model, and write the summary."""
    from mcrnn import search_figures

    opened, mirrors = running.opened, running.mirrors
    search = opened.search
    tidy(opened)
    folder = opened.trial_folder(best.number)
    confirmed = confirmation.judged(search, opened.folder, confirmation.planned(search, results(opened)))
    if confirmed:
        folder = opened.folder.child(confirmed[0]["folder"])
    _record_baselines(opened, mirrors)
    run = mirrors.now(folder)
    model = model_directory.load(folder.child(MODEL_FOLDER))
    judged = _judged(running, model, run)
    found = {
        "search": opened.name,
        "best": confirmed[0]["best"] if confirmed else best.user_attrs["result"]["best"],
        "trial": confirmed[0]["trial"] if confirmed else best.number,
    }
    if confirmed:
        found |= {"mean": confirmed[0]["mean"], "std": confirmed[0]["std"], "seeds": confirmed[0]["seeds"]}
    version, alias = registry.register(
        run, folder.child(MODEL_FOLDER), opened.model_name, found=found, judged=judged, origin=mirrors.tracker.origin
    )
    rows = [
        {
            "trial": t.number,
            "end": t.user_attrs.get("end", TrialEnd.FAILED),
            "values": search.values(t.params),
            "epochs": search.configuration(search.values(t.params)).train.epochs,
            **t.user_attrs.get("result", {}),
        }
        for t in tried(opened.study)
    ]
    several = len(search.search.objectives) > 1
    summary = {
        "search": opened.name,
        "best_trial": found["trial"],
        "best": found["best"],
        "confirmed": confirmed,
        "seeds": search.search.confirm.seeds if search.search.confirm else 0,
        "importance": importance(opened.study),
        "front": [t.number for t in opened.study.best_trials] if several else [],
        "test": {name: judged[name] for name in TEST_METRICS} if judged else None,
        "run_id": run.run_id,
        "model": opened.model_name,
        "version": version,
        "alias": alias,
        "trials": rows,
    }
    parent = mirrors.now(opened.folder)
    parent.log_metrics({"best": summary["best"]})
    parent.set_tags({"mcrnn.best_trial": str(summary["best_trial"]), "mcrnn.model_version": str(version)})
    with tempfile.TemporaryDirectory(prefix="mcrnn-figures-") as place:
        pictures = [] if several else search_figures.draw(Path(place), rows, list(search.space), summary["importance"])
        for picture in pictures:
            opened.folder.write(f"figures/{picture.name}", picture.read_bytes())
        parent.log_files(pictures, "figures")
    parent.log_json({SUMMARY_FILE: summary})
    opened.folder.write(SUMMARY_FILE, json.dumps(summary, indent=1).encode())


def _judged(running: _Running, model: TrainedModel, run: Run) -> dict[str, Any] | None:
    """The champion's errors on the test split, which are added to its run; None where its samples are too short."""
    from mcrnn import report
    from mcrnn.judging import judge

    try:
        judged = judge(run.run_id, model, running.opened.storage)
    except UserError as error:
        print(f"warning: the model was not judged on the test split: {error}", file=sys.stderr)
        return None
    run.log_metrics({f"test_{name}": judged.metrics[name] for name in TEST_METRICS})
    with tempfile.TemporaryDirectory(prefix="mcrnn-report-") as place:
        files = report.write([report.Group(judged.metrics["architecture"], [judged], [])], Path(place))
        run.log_files(files, "evaluation")
    return judged.metrics


def _record_baselines(opened: OpenSearch, mirrors: Mirrors) -> None:
    """Runs of persistence and climatology beside the trials, judged as they are."""
    first = opened.search.first_configuration()
    asked, field = first.validation, FieldDescription.of(opened.store, first.data)
    folders_of = {name: opened.folder.child(f"baselines/{name}") for name in ("persistence", "climatology")}
    if all(tracking.settled(folder) for folder in folders_of.values()):
        return
    exam = Exam.of_validation(opened.store, first)
    channels = first.model.channels_out or len(field.channels)
    std = np.array(field.std[:channels])
    scores = score_baselines(exam, channels)
    for name, folder in folders_of.items():
        tags = {"mcrnn.kind": "baseline", "mcrnn.search": opened.name}
        tracking.write_record(folder, name, tags=tags, params={"model": {"architecture": name}})
        metrics = {
            "epoch": 0,
            "time": time.time(),
            "rmse_closed_loop": rmse(scores[name].squared, 2, asked.horizon + 1),
            OBJECTIVE: rmse_normalized(scores[name].squared, 2, asked.horizon + 1, std),
        }
        folder.write(tracking.METRICS_FILE, f"{json.dumps(metrics | {'best': metrics[OBJECTIVE]})}\n".encode())
        mirrors.update(folder, "FINISHED")


def importance(study: optuna.Study) -> dict[str, float]:
    """How much of the spread of good trials each hyperparameter explains (PED-ANOVA), the largest first."""
    done = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    if len(done) < 4 or len(study.directions) > 1:
        return {}
    try:
        with optuna_quiet():
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # there is nothing to compare
        return {}
