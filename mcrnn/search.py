"""A search from its file to the registered model.

The driver: Tune runs the trials that the study proposes, each trial keeps its checkpoints under
`searches/NAME/trials/`, and when the budget is spent the best model goes to the registry. The study and the
folder are all the state there is: a search that is run again goes on from them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from rich.console import Console

from mcrnn import folders, model_directory, registry
from mcrnn.cluster import connected
from mcrnn.errors import UserError
from mcrnn.fields import FieldStore
from mcrnn.model_directory import FieldDescription
from mcrnn.progress import Progress, short, show
from mcrnn.space import Search
from mcrnn.storage import LocalFolder, Storage, write_atomically
from mcrnn.study import StudySearcher, open_study, tried
from mcrnn.tables import new_table
from mcrnn.tracking import Run, Tracker
from mcrnn.training import OBJECTIVE
from mcrnn.windows import FieldData, check_exam
from mcrnn.worker import MODEL_FOLDER, RUN_FILE, Job, run_distributed, run_in_tune

SUMMARY_FILE = "summary.json"
BUDGETS = ("search.trials", "search.concurrency")
"""what may change when a search is continued"""


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
        return len(tried(self.study)) >= self.search.search.trials and self.summary is not None

    @property
    def summary(self) -> dict[str, Any] | None:
        """What was written down when the search ended, None before."""
        file = self.folder / SUMMARY_FILE
        return json.loads(file.read_bytes()) if file.exists() else None

    def trial_folder(self, number: int) -> Path:
        """Where a trial keeps its state and model."""
        return self.folder / "trials" / f"{number:04d}"


def open_search(search: Search, storage: Storage, *, new: bool) -> OpenSearch:
    """Check a search against its store and open its folder, or a new one beside it.

    Raises:
        UserError: the store cannot be used, its samples are too short, or the folder holds another search.
    """
    first = search.first_configuration()
    store = FieldStore.open(storage.location(first.data.store))
    lengths = {search.configuration(values).data.sequence_length for values in search.space.corners()}
    for length in sorted(lengths):
        check_exam(store, first, sequence_length=length)
    parent = LocalFolder(storage.path("searches"))
    folder = parent.path / folders.choose(parent, search.name, new=new)
    content = search.content() | {"store_digest": store.digest}
    folders.claim(LocalFolder(folder), content, BUDGETS)
    return OpenSearch(search, storage, folder, store, open_study(folder, search))


def run(opened: OpenSearch) -> None:
    """Run the trials that are left, then register the best model and write the summary.

    Raises:
        UserError: no trial produced a model.
    """
    console = Console()
    search, folder = opened.search, opened.folder
    where = opened.storage.show(folder)
    left = search.search.trials - len(tried(opened.study))
    console.print(f"search {folder.name}: {left} trials to run, in {where}", highlight=False, soft_wrap=True)
    tracker = Tracker.open(opened.storage, opened.model_name)
    parent = _parent_run(opened, tracker)
    status = "KILLED"
    try:
        if left > 0:
            _run_trials(opened, tracker, parent, console)
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


def _run_trials(opened: OpenSearch, tracker: Tracker, parent: Run, console: Console) -> None:
    search, folder, store = opened.search, opened.folder, opened.store
    first = search.first_configuration()
    workers = first.train.workers
    with connected() as cpus:
        if workers > cpus:
            raise UserError(f"train.workers {workers} needs as many CPUs, there are {cpus}")
        slots = max(1, cpus // workers)
        trial = tune.with_parameters(
            _trial,
            opened=(search, FieldDescription.of(store, first.data), folder),
            tracker=tracker,
            parent_run=parent.run_id,
            # in a list, so that Tune hands on the reference and all trials of a node share one copy
            data=[ray.put(FieldData.load(store, first.data))],
        )
        # the driver of a trial with several workers takes no CPU, or its workers would wait for it for ever
        resources: dict[str, float] = {"CPU": 1} if workers == 1 else {"node:__internal_head__": 0.001}
        with Progress(search, folder.name, console, done=len(tried(opened.study))) as progress:
            tuner = tune.Tuner(
                tune.with_resources(trial, resources),
                tune_config=tune.TuneConfig(
                    search_alg=StudySearcher(opened.study, search),
                    scheduler=_scheduler(search),
                    num_samples=-1,  # until the searcher says that it is finished
                    max_concurrent_trials=min(search.search.concurrency or slots, slots),
                    reuse_actors=workers == 1,
                ),
                run_config=tune.RunConfig(
                    name="ray",
                    storage_path=str(folder),
                    callbacks=[progress, _CloseRuns(opened, tracker)],
                    failure_config=tune.FailureConfig(max_failures=0),
                    verbose=0,
                ),
            )
            tuner.fit()


def _scheduler(search: Search) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    if search.search.scheduler == "none":
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=OBJECTIVE,
        mode="min",
        max_t=1_000_000,  # trials end by themselves, at their last epoch
        grace_period=search.search.asha.grace_epochs,
        reduction_factor=search.search.asha.reduction_factor,
    )


def _trial(
    proposal: dict[str, Any],
    *,
    opened: tuple[Search, FieldDescription, Path],
    tracker: Tracker,
    parent_run: str,
    data: list[Any],
) -> None:
    """One trial, in a Tune actor: trains there, or drives the workers of Ray Train."""
    search, field, folder = opened
    number = proposal["number"]
    job = Job(
        config=search.configuration(proposal["values"]),
        field=field,
        folder=LocalFolder(folder / "trials" / f"{number:04d}"),
        tracker=tracker,
        run_name=f"trial-{number}",
        parent_run=parent_run,
        tags=(("mcrnn.kind", "trial"), ("mcrnn.search", folder.name)),
    )
    if job.config.train.workers == 1:
        run_in_tune(job, ray.get(data[0]))
        return
    from ray.tune.integration.ray_train import TuneReportCallback

    run_distributed(job, data[0], callbacks=[TuneReportCallback()])


class _CloseRuns(tune.Callback):
    """Ends a trial's MLflow run, which the trial cannot do itself where it is stopped or dies."""

    def __init__(self, opened: OpenSearch, tracker: Tracker) -> None:
        self.opened, self.tracker = opened, tracker

    def _end(self, trial: Any, status: str) -> None:
        file = self.opened.trial_folder(trial.config["number"]) / RUN_FILE
        if file.exists():
            Run(self.tracker, json.loads(file.read_bytes())["run_id"]).end(status)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._end(trial, "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._end(trial, "FAILED")


def results(opened: OpenSearch) -> list[FrozenTrial]:
    """Trials that produced a model, the best first; those that ran to their end before those stopped early."""
    with_model = [
        t
        for t in tried(opened.study)
        if "result" in t.user_attrs and (opened.trial_folder(t.number) / MODEL_FOLDER / model_directory.CONFIG).exists()
    ]
    return sorted(with_model, key=lambda t: (t.state != TrialState.COMPLETE, t.user_attrs["result"]["best"]))


def best_trial(opened: OpenSearch) -> FrozenTrial | None:
    """The winner, None where no trial produced a model."""
    return next(iter(results(opened)), None)


def _finish(opened: OpenSearch, tracker: Tracker, parent: Run, best: FrozenTrial) -> None:
    """Register the best trial's model and write the summary."""
    folder = opened.trial_folder(best.number)
    run_id = json.loads((folder / RUN_FILE).read_bytes())["run_id"]
    version = registry.register(Run(tracker, run_id), folder / MODEL_FOLDER, opened.model_name)
    rows = [
        {
            "trial": t.number,
            "end": t.user_attrs.get("end", "failed"),
            "values": opened.search.values(t.params),
            "epochs": opened.search.configuration(opened.search.values(t.params)).train.epochs,
            **t.user_attrs.get("result", {}),
        }
        for t in tried(opened.study)
    ]
    summary = {
        "search": opened.folder.name,
        "best_trial": best.number,
        "best": best.user_attrs["result"]["best"],
        "run_id": run_id,
        "model": opened.model_name,
        "version": version,
        "alias": registry.CHAMPION,
        "trials": rows,
    }
    parent.log_metrics({"best": summary["best"]}, step=0)
    parent.set_tags({"mcrnn.best_trial": str(best.number), "mcrnn.model_version": str(version)})
    write_atomically(opened.folder / SUMMARY_FILE, json.dumps(summary, indent=1).encode())
    parent.log_files([opened.folder / SUMMARY_FILE])


def print_summary(opened: OpenSearch) -> None:
    """The best trial of every architecture, and what to do next."""
    summary = opened.summary
    assert summary is not None
    console = Console()
    rows = sorted((row for row in summary["trials"] if "best" in row), key=lambda row: row["best"])
    architecture = "model.architecture"
    grouped = architecture in opened.search.space
    if grouped:
        best_of: dict[str, dict[str, Any]] = {}
        for row in rows:
            best_of.setdefault(row["values"][architecture], row)
        rows = list(best_of.values())
    space = sorted(opened.search.space, key=lambda path: path != architecture)
    title = "best of every architecture" if grouped else "best trials"
    table = new_table([*map(short, space), "trial", "epochs", "error"], title=title, names=int(grouped))
    for row in rows[:10]:
        style = "bold green" if row["trial"] == summary["best_trial"] else None
        cells = [show(row["values"].get(path, "")) for path in space]
        table.add_row(*cells, str(row["trial"]), f"{row['epoch']}/{row['epochs']}", f"{row['best']:.4f}", style=style)
    console.print(table)
    uri = f"models:/{summary['model']}@{summary['alias']}"
    trials = summary["trials"]
    stopped = sum(row["end"] == "stopped" for row in trials)
    failed = sum(row["end"] in ("failed", "diverged") for row in trials)
    lines = [
        "error: closed-loop RMSE of the validation split over the training split's standard deviation",
        f"{len(trials)} trials, {stopped} stopped early, {failed} failed or diverged; "
        f"the winner is trial {summary['best_trial']}, version {summary['version']} of {summary['model']}",
        "",
        "next:",
        f"  python -m mcrnn.evaluate {uri}" + _storage_option(opened),
        f"  {ui_command(opened.storage)}",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _storage_option(opened: OpenSearch) -> str:
    """What makes the next command find the same root as this one, where it was named on the command line."""
    here = Storage.open().root
    return "" if opened.storage.root == here else f" --storage {opened.storage.show(opened.storage.root)}"


def ui_command(storage: Storage) -> str:
    """The command that shows the runs, or where they are shown."""
    uri = storage.tracking_uri
    if uri.startswith("http"):
        return f"open {uri} in a browser for the MLflow UI"
    local = uri.removeprefix("sqlite:///")
    return f"mlflow ui --backend-store-uri sqlite:///{storage.show(Path(local))}"
