"""The driver of a search: runs the trials that are left, then the confirmation, and ends what was begun."""

from __future__ import annotations

import contextlib
import tempfile

import ray
from ray import tune
from rich.console import Console

from mcrnn.data.description import FieldDescription
from mcrnn.data.splits import FieldData
from mcrnn.errors import UserError
from mcrnn.runners.ray_cluster import connected, gpus_for
from mcrnn.runners.signals import on_stop
from mcrnn.runners.stop_flag import new_stop_flag
from mcrnn.search import confirmation
from mcrnn.search.callbacks import Progress, _Confirmed, _Ending
from mcrnn.search.finalize import conclude
from mcrnn.search.search_run import ActiveSearch, SearchRun, best_trial, ranked_trials
from mcrnn.search.study import budget, finished_trials, stop_reason
from mcrnn.search.trials import Trials, run_trial, trial_name
from mcrnn.search.tune_adapter import StudyScheduler, StudySearcher
from mcrnn.storage.lease import Lease
from mcrnn.storage.outbox import Outbox
from mcrnn.storage.retry import retries_enabled
from mcrnn.tracking.mlflow_client import Tracker
from mcrnn.tracking.sync import RunSync

LEASE = "lock.json"


def run(opened: SearchRun) -> None:
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
    with retries_enabled(), contextlib.ExitStack() as at_end:
        at_end.callback(lease.release)
        tracker = Tracker.open(opened.storage, opened.model_name)
        left = max(0, budget(opened.study, search.search) - len(finished_trials(opened.study)))
        console.print(f"search {opened.name}: {left} trials to run, in {where}", highlight=False, soft_wrap=True)
        mirrors = RunSync(tracker)
        at_end.callback(mirrors.close)
        copies = Outbox(f"'{folder.url}'")
        at_end.callback(copies.close)
        running = ActiveSearch(opened, mirrors, copies, lease, console)
        mirrors.parent = running.begin()
        status = "KILLED"
        try:
            if stop_reason(opened.study, search.search) is None or _unfinished_confirmation(opened):
                _run_all(running)
            running.end_runs()
            best = best_trial(opened)
            if best is None:
                raise UserError(
                    f"no trial of '{opened.name}' has produced a model; see {where}/trials for their errors"
                )
            conclude(opened, mirrors, best)
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


def _unfinished_confirmation(opened: SearchRun) -> bool:
    plan = confirmation.planned_retrainings(opened.search, ranked_trials(opened))
    return any(not each.finished(opened.folder) for each in plan)


def _run_all(running: ActiveSearch) -> None:
    """The trials that are left, then the confirmation."""
    opened, console = running.opened, running.console
    search, folder, store = opened.search, opened.folder, opened.store
    first = search.first_configuration()
    workers = first.train.workers
    with connected() as resources, contextlib.ExitStack() as until_end:
        cpus = resources.cpus
        if workers > cpus:
            raise UserError(f"train.workers {workers} needs as many CPUs, there are {cpus}")
        gpus = gpus_for(first.train, resources.gpus, search.search.gpus)
        room = min(cpus, int(resources.gpus / gpus)) if gpus else cpus
        flag = new_stop_flag()
        searcher = StudySearcher(opened.study, search, running.tell)
        if workers > 1:
            searcher.end_training = lambda number, epoch: flag.end.remote(trial_name(number), epoch)
        tune_folder = until_end.enter_context(tempfile.TemporaryDirectory(prefix="mcrnn-tune-"))

        def stop() -> None:
            searcher.ending = "it was interrupted"
            flag.request.remote()

        until_end.enter_context(on_stop(stop))
        trials = Trials(
            tune.with_parameters(
                run_trial,
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
        if stop_reason(opened.study, search.search) is None:
            done, all_of_them = len(finished_trials(opened.study)), budget(opened.study, search.search)
            with Progress(search, opened.name, console, budget=all_of_them, done=done) as progress:
                trials.run("ray", [ending, progress], search_alg=searcher, scheduler=StudyScheduler(searcher))
        if searcher.mistake:
            raise UserError(f"a trial cannot be trained, so the search has stopped: {searcher.mistake}")
        why = stop_reason(opened.study, search.search)
        if why is None:
            raise KeyboardInterrupt
        console.print(f"{opened.name}: {why}", highlight=False, soft_wrap=True)
        _confirm(running, trials, searcher)


def _confirm(running: ActiveSearch, trials: Trials, searcher: StudySearcher) -> None:
    opened, folder = running.opened, running.opened.folder
    plan = confirmation.planned_retrainings(opened.search, ranked_trials(opened))
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
