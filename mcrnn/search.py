"""A search from its file to the registered model.

The driver: Tune runs the trials that the study proposes, each trial keeps its checkpoints under
`searches/NAME/trials/`, the best are trained again with several seeds where that is asked for, and the best model
goes to the registry. The study and the folder are all the state there is: a search that is run again goes on from
them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import shutil
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from rich.console import Console

from mcrnn import confirmation, folders, model_directory, registry
from mcrnn.checks import check
from mcrnn.cluster import connected
from mcrnn.errors import NotEnoughMemoryError, UserError, did_you_mean
from mcrnn.fields import FieldStore
from mcrnn.interrupts import on_stop
from mcrnn.model_directory import FieldDescription
from mcrnn.models import sized
from mcrnn.progress import Progress
from mcrnn.search_report import figures, optuna_quiet
from mcrnn.space import Search
from mcrnn.storage import LocalFolder, Storage, write_atomically
from mcrnn.study import StudyScheduler, StudySearcher, TrialEnd, budget, open_study, spent, tried
from mcrnn.tracking import Run, Tracker
from mcrnn.training import OBJECTIVE, PENALTY, End
from mcrnn.windows import FieldData
from mcrnn.worker import (
    CHECKPOINT_FOLDER,
    END_FILE,
    MODEL_FOLDER,
    RUN_FILE,
    Job,
    StopFlag,
    explained,
    gpus_for,
    read_json,
    read_metrics,
    run_distributed,
    run_in_tune,
)

SUMMARY_FILE = "summary.json"
LOCK_FILE = "lock"
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
    folder: Path
    store: FieldStore
    study: optuna.Study

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
        return read_json(LocalFolder(self.folder), SUMMARY_FILE)

    def trial_folder(self, number: int) -> Path:
        """Where a trial keeps its state and model."""
        return self.folder / "trials" / f"{number:04d}"


def open_search(search: Search, storage: Storage, *, new: bool) -> OpenSearch:
    """Check a search against its store and open its folder, or a new one beside it.

    Raises:
        UserError: the store cannot be used, its samples are too short, or the folder holds another search.
    """
    store = check(search, storage)
    parent = LocalFolder(storage.path("searches"))
    folder = parent.path / folders.choose(parent, search.name, new=new)
    folders.claim(LocalFolder(folder), search.content() | {"store_digest": store.digest}, MAY_CHANGE)
    earlier = [_earlier(name, parent.path) for name in search.search.warm_start]
    return OpenSearch(search, storage, folder, store, open_study(folder, search, earlier))


def _earlier(name: str, searches: Path) -> optuna.Study:
    from mcrnn.study import JOURNAL, STUDY

    if not (searches / name / JOURNAL).exists():
        known = [path.parent.name for path in searches.glob(f"*/{JOURNAL}")]
        raise UserError(
            f"search.warm_start: there is no search '{name}' with a journal here{did_you_mean(name, known)}"
        )
    backend = optuna.storages.journal.JournalFileBackend(str(searches / name / JOURNAL))
    study = optuna.load_study(study_name=STUDY, storage=optuna.storages.JournalStorage(backend))
    study.study_name = name
    return study


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a second driver of the same search on this machine; ends with the process, however that ends."""
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"the search '{folder.name}' is running already; --new starts another beside it") from None
        yield


def run(opened: OpenSearch) -> None:
    """Run the trials that are left and the confirmation, then register the best model and write the summary.

    Raises:
        UserError: no trial produced a model, a configuration cannot be trained, or the search runs already.
        KeyboardInterrupt: a stop was asked for, and checkpoints written.
    """
    console = Console()
    search, folder = opened.search, opened.folder
    where = opened.storage.show(folder)
    with _alone(folder):
        left = max(0, budget(opened.study, search.search) - len(tried(opened.study)))
        console.print(f"search {folder.name}: {left} trials to run, in {where}", highlight=False, soft_wrap=True)
        tracker = Tracker.open(opened.storage, opened.model_name)
        parent = _parent_run(opened, tracker)
        status = "KILLED"
        try:
            if spent(opened.study, search.search) is None or _unfinished_confirmation(opened):
                _run_all(opened, tracker, parent, console)
            best = best_trial(opened)
            if best is None:
                raise UserError(f"no trial of '{folder.name}' has produced a model; see {where}/ray for their errors")
            _finish(opened, tracker, parent, best)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            parent.end(status)


def _parent_run(opened: OpenSearch, tracker: Tracker) -> Run:
    """The search's run in MLflow: the one it had before, or a new one."""
    file = opened.folder / RUN_FILE
    if file.exists():
        return Run(tracker, json.loads(file.read_bytes())["run_id"])
    tags = {"mcrnn.kind": "search", "mcrnn.searched": ", ".join(opened.search.space)}
    parent = tracker.start(opened.folder.name, tags=tags)
    parent.log_files([opened.folder / folders.CONTENT_FILE])
    write_atomically(file, json.dumps({"run_id": parent.run_id}).encode())
    return parent


def _unfinished_confirmation(opened: OpenSearch) -> bool:
    folder = LocalFolder(opened.folder)
    return any(not each.finished(folder) for each in confirmation.planned(opened.search, results(opened)))


def _run_all(opened: OpenSearch, tracker: Tracker, parent: Run, console: Console) -> None:
    """The trials that are left, then the confirmation."""
    search, folder, store = opened.search, opened.folder, opened.store
    first = search.first_configuration()
    workers = first.train.workers
    with connected() as cpus, contextlib.ExitStack() as until_end:
        if workers > cpus:
            raise UserError(f"train.workers {workers} needs as many CPUs, there are {cpus}")
        in_cluster = ray.cluster_resources().get("GPU", 0)
        gpus = gpus_for(first.train, in_cluster, search.search.gpus)
        room = min(cpus, int(in_cluster / gpus)) if gpus else cpus
        flag: Any = ray.remote(num_cpus=0)(StopFlag).remote()
        searcher = StudySearcher(opened.study, search)

        def stop() -> None:
            searcher.ending = "it was interrupted"
            flag.request.remote()

        until_end.enter_context(on_stop(stop))
        trials = _Trials(
            tune.with_parameters(
                _trial,
                opened=(search, FieldDescription.of(store, first.data), folder),
                tracking=(tracker, parent.run_id),
                # in a list, so that Tune hands on the reference and all trials of a node share one copy
                data=[ray.put(FieldData.load(store, first.data))],
                cluster=(gpus, flag),
            ),
            folder,
            # the driver of a trial with several workers takes no CPU, or its workers would wait for it for ever
            {"CPU": 1, **({"GPU": gpus} if gpus else {})} if workers == 1 else {"node:__internal_head__": 0.001},
            min(search.search.concurrency or room, max(1, room // workers)),
            first.train.max_failures if workers == 1 else 0,
        )
        ending = _Ending(opened, tracker, searcher, stop)
        if spent(opened.study, search.search) is None:
            done, all_of_them = len(tried(opened.study)), budget(opened.study, search.search)
            with Progress(search, folder.name, console, budget=all_of_them, done=done) as progress:
                trials.run("ray", [ending, progress], search_alg=searcher, scheduler=StudyScheduler(searcher))
        if searcher.mistake:
            raise UserError(f"a trial cannot be trained, so the search has stopped: {searcher.mistake}")
        why = spent(opened.study, search.search)
        if why is None:
            raise KeyboardInterrupt
        console.print(f"{folder.name}: {why}", highlight=False, soft_wrap=True)
        _confirm(opened, trials, tracker, searcher, console)


def _confirm(opened: OpenSearch, trials: _Trials, tracker: Tracker, searcher: StudySearcher, console: Console) -> None:
    folder = LocalFolder(opened.folder)
    plan = confirmation.planned(opened.search, results(opened))
    missing = [each for each in plan if not each.finished(folder)]
    if not missing:
        return
    seeds = opened.search.search.confirm.seeds if opened.search.search.confirm else 0
    console.print(
        f"confirmation: {len(missing)} trainings, {seeds} seeds of each of {len(plan) // seeds}", highlight=False
    )
    proposals = [{"retrain": (each.name, each.values)} for each in missing]
    trials.run("ray-confirmation", [_Confirmed(opened, tracker, console, searcher)], proposals=proposals)
    if searcher.mistake:
        raise UserError(f"a configuration cannot be trained again: {searcher.mistake}")
    if any(not each.finished(folder) for each in plan):
        raise KeyboardInterrupt


@dataclass(frozen=True)
class _Trials:
    """How Tune runs trials, whichever they are."""

    trial: Any
    folder: Path
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
                storage_path=str(self.folder),
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
        if failure:
            raise failure[0]


def _trial(
    proposal: dict[str, Any],
    *,
    opened: tuple[Search, FieldDescription, Path],
    tracking: tuple[Tracker, str],
    data: list[Any],
    cluster: tuple[float, Any],
) -> None:
    """One trial, in a Tune actor: trains there, or drives the workers of Ray Train.

    What ends it is reported, not raised, so that only lost processes are tried again.
    """
    search, field, folder = opened
    tracker, parent_run = tracking
    gpus, flag = cluster
    proposal = proposal.get("proposal", proposal)
    if "retrain" in proposal:
        name, values = proposal["retrain"]
        place, kind = f"{confirmation.FOLDER}/{name}", "confirmation"
    else:
        values, name, kind = proposal["values"], f"trial-{proposal['number']}", "trial"
        place = f"trials/{proposal['number']:04d}"
    nothing = {OBJECTIVE: PENALTY, "best": PENALTY, "diverged": 0.0}
    try:
        job = Job(
            config=sized(search.configuration(values), field.frame_shape),
            field=field,
            folder=LocalFolder(folder).child(place),
            tracker=tracker,
            run_name=name,
            parent_run=parent_run,
            tags=(("mcrnn.kind", kind), ("mcrnn.search", folder.name)),
        )
        if read_json(job.folder, END_FILE) is None:
            if job.config.train.workers == 1:
                run_in_tune(job, ray.get(data[0]), flag)
            else:
                from ray.tune.integration.ray_train import TuneReportCallback

                try:
                    run_distributed(job, data[0], gpus=gpus, stop=flag, callbacks=[TuneReportCallback()])
                except Exception as error:
                    if (known := explained(job, error)) is error:
                        raise
                    raise known from error
        elif history := read_metrics(job.folder):
            tune.report(history[-1] | {"epochs": job.config.train.epochs})
        ended = read_json(job.folder, END_FILE)
        if ended is None:
            tune.report(nothing | {"interrupted": 1.0})
        elif ended["end"] == End.OUT_OF_MEMORY:
            tune.report(nothing | {"epoch": 0, "out_of_memory": 1.0})
    except NotEnoughMemoryError:
        tune.report(nothing | {"epoch": 0, "out_of_memory": 1.0})
    except Exception as error:
        if workers_were_lost(error):
            raise
        log = LocalFolder(folder).child(place)
        log.write("error.txt", traceback.format_exc().encode())
        where = "" if isinstance(error, UserError) else f" ({type(error).__name__}; see {log.url}/error.txt)"
        tune.report(nothing | {"mistake": f"{name}: {error}{where}"})


def workers_were_lost(error: BaseException) -> bool:
    """Whether a training on Ray Train failed because its processes were lost, rather than by what they ran."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return False
    return all(isinstance(each, ray.exceptions.RayError) for each in failures.values())


class _Ending(tune.Callback):
    """What is to be done when a trial ends: its MLflow run, its files, and the search where it was a mistake."""

    def __init__(self, opened: OpenSearch, tracker: Tracker, searcher: StudySearcher, stop: Any) -> None:
        self.opened, self.tracker, self.searcher, self.stop = opened, tracker, searcher, stop

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks with its own state, from which we never restore."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Ends the run, which the trial cannot do itself where it is stopped, and removes what nobody needs."""
        result = trial.last_result or {}
        if result.get("mistake"):
            self.stop()
        status = "KILLED" if result.get("interrupted") else "FAILED" if result.get("mistake") else "FINISHED"
        self._end(trial, status)
        tidy(self.opened)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Ends the run."""
        self._end(trial, "FAILED")

    def _end(self, trial: Any, status: str) -> None:
        end_run(self.opened.trial_folder(trial.config["number"]), self.tracker, status)


def end_run(folder: Path, tracker: Tracker, status: str) -> None:
    """End the MLflow run of a training, where it has begun."""
    content = read_json(LocalFolder(folder), RUN_FILE)
    if content is not None:
        Run(tracker, content["run_id"]).end(status)


class _Confirmed(tune.Callback):
    """Follows the confirmation."""

    def __init__(self, opened: OpenSearch, tracker: Tracker, console: Console, searcher: StudySearcher) -> None:
        self.opened, self.tracker, self.console, self.searcher = opened, tracker, console, searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A line, and the end of the run."""
        result = trial.last_result or {}
        name, values = trial.config["proposal"]["retrain"]
        if result.get("mistake"):
            self.searcher.mistake = result["mistake"]
        folder = self.opened.folder / confirmation.FOLDER / name
        end_run(folder, self.tracker, "KILLED" if result.get("interrupted") else "FINISHED")
        shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=not result.get("interrupted"))
        architecture = self.opened.search.configuration(values).model.architecture
        self.console.print(
            f"{architecture}, {name}: error {result.get('best', PENALTY):.4f}", highlight=False, soft_wrap=True
        )


def tidy(opened: OpenSearch) -> None:
    """Remove the checkpoints of trials that ended, and the models of all but the best."""
    ended = tried(opened.study)
    for trial in ended:
        shutil.rmtree(opened.trial_folder(trial.number) / CHECKPOINT_FOLDER, ignore_errors=True)
    for trial in results(opened)[opened.search.search.keep :]:
        shutil.rmtree(opened.trial_folder(trial.number) / MODEL_FOLDER, ignore_errors=True)


def results(opened: OpenSearch) -> list[FrozenTrial]:
    """Trials that ended well, the best first; those that ran to their end before those stopped early."""
    good = [t for t in tried(opened.study) if t.user_attrs.get("end") in (TrialEnd.FINISHED, TrialEnd.STOPPED)]
    return sorted(good, key=lambda t: (t.state != TrialState.COMPLETE, t.user_attrs["result"]["best"], t.number))


def best_trial(opened: OpenSearch) -> FrozenTrial | None:
    """The best that has a model, None where no trial has one."""
    config = model_directory.CONFIG
    kept = (t for t in results(opened) if (opened.trial_folder(t.number) / MODEL_FOLDER / config).exists())
    return next(kept, None)


def _finish(opened: OpenSearch, tracker: Tracker, parent: Run, best: FrozenTrial) -> None:
    """Register the best model and write the summary."""
    search = opened.search
    folder = opened.trial_folder(best.number)
    confirmed = confirmation.judged(search, LocalFolder(opened.folder), confirmation.planned(search, results(opened)))
    if confirmed:
        folder = opened.folder / confirmed[0]["folder"]
    run_id = read_json(LocalFolder(folder), RUN_FILE)["run_id"]
    version = registry.register(Run(tracker, run_id), folder / MODEL_FOLDER, opened.model_name)
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
        "search": opened.folder.name,
        "best_trial": confirmed[0]["trial"] if confirmed else best.number,
        "best": confirmed[0]["best"] if confirmed else best.user_attrs["result"]["best"],
        "confirmed": confirmed,
        "seeds": search.search.confirm.seeds if search.search.confirm else 0,
        "importance": importance(opened.study),
        "front": [t.number for t in opened.study.best_trials] if several else [],
        "run_id": run_id,
        "model": opened.model_name,
        "version": version,
        "alias": registry.CHAMPION,
        "trials": rows,
    }
    parent.log_metrics({"best": summary["best"]}, step=0)
    parent.set_tags({"mcrnn.best_trial": str(summary["best_trial"]), "mcrnn.model_version": str(version)})
    write_atomically(opened.folder / SUMMARY_FILE, json.dumps(summary, indent=1).encode())
    pictures = [] if several else figures(opened.study, opened.folder / "figures")
    parent.log_files([opened.folder / SUMMARY_FILE])
    parent.log_files(pictures, "figures")


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
