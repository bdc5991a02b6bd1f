"""The driver of a search: runs the remaining trials, then the confirmation, then registers the best model."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Any

import ray
from ray import tune
from rich.console import Console

from mcrnn.data.splits import FieldData
from mcrnn.errors import UserError
from mcrnn.runners.cluster_size import Cluster, gpus_for
from mcrnn.runners.ray_cluster import connected
from mcrnn.runners.signals import on_stop
from mcrnn.runners.stop_flag import new_stop_flag
from mcrnn.runners.stop_requests import FINISHES
from mcrnn.search.attributes import CONFIRMATION, REGISTRATION
from mcrnn.search.budgets import Budgets, budget, stop_reason, useful_concurrency
from mcrnn.search.callbacks import ConfirmationCallback, PresenceCallback, TrialCallback
from mcrnn.search.driver_log import DriverLog
from mcrnn.search.finalize import finalize
from mcrnn.search.gpu_sharing import share_gpus
from mcrnn.search.packing import TrialShare
from mcrnn.search.page_writer import PageWriter
from mcrnn.search.progress import ProgressDisplay
from mcrnn.search.search_run import ActiveSearch, SearchRun
from mcrnn.search.stop_requests import SearchStopRequests, StopTrialsCallback
from mcrnn.search.training_list import TrainingList
from mcrnn.search.trial_index import TrialIndex
from mcrnn.search.trial_measurement import Measure, measure_on_gpu
from mcrnn.search.trial_runner import TrialRunner
from mcrnn.search.trials import TrialContext, run_trial, trial_name
from mcrnn.search.tune_adapter import StudyScheduler, StudySearcher
from mcrnn.storage.outbox import Outbox
from mcrnn.storage.presence import Presence
from mcrnn.storage.retry import retries_enabled
from mcrnn.tracking.experiment import Tracker
from mcrnn.tracking.mlflow_client import refusals_explained
from mcrnn.tracking.sync import RunSync


def run(search_run: SearchRun, facts: dict[str, Any] | None = None, measure: Measure = measure_on_gpu) -> None:
    """Run the remaining trials and the confirmation, then register the best model and write the summary.

    Args:
        search_run: the search.
        facts: what `python -m mcrnn.status` is to know of this process, such as which file it has read; JSON.
        measure: measures what trials take of a GPU, where `search.gpus` is auto.

    Raises:
        UserError: no trial produced a model, a configuration cannot be trained, or another process has taken the search
            over, which then writes all that there is to write.
        LoggedError: any other error; its traceback is in the log of the driver, as is that of a UserError.
        KeyboardInterrupt: a stop was asked for, and checkpoints have been written.
    """
    console = Console()
    search, folder, study, lease = search_run.search, search_run.folder, search_run.study, search_run.lease
    shown_folder = search_run.storage.show(folder.location)
    with contextlib.ExitStack() as at_end, retries_enabled():  # what is done at the end waits for nothing
        log = at_end.enter_context(DriverLog(folder.location, shown_folder, lambda: not lease.lost))
        at_end.enter_context(
            PageWriter(search_run.storage, search_run.name, lambda: not lease.lost, search.search.storage)
        )
        requests = SearchStopRequests(
            search_run.name, lambda line: console.print(line, highlight=False, soft_wrap=True)
        )
        presence = Presence(folder.location, facts or {}, requests.hear, lambda: not lease.lost)
        at_end.enter_context(presence)
        tracker = Tracker.open(search_run.storage, search_run.model_name)
        index = TrialIndex(study)
        remaining = max(0, budget(index, search.search) - index.ended)
        console.print(
            f"search {search_run.name}: {remaining} trials to run, in {shown_folder}", highlight=False, soft_wrap=True
        )
        sync = RunSync(tracker)
        at_end.callback(sync.close)
        uploads = Outbox(f"'{folder.url}'")
        at_end.callback(uploads.close)
        log.put = uploads.put
        active = ActiveSearch(search_run, sync, uploads, console, index)
        active.start_mlflow_run()
        status = "KILLED"
        try:
            # also where nothing more is to be started, what runs is completed and what is paused is stopped
            unfinished = stop_reason(study, search.search, index) is None or index.running
            if unfinished or search_run.confirmation(index).missing:
                _run_trials(active, presence, requests, measure)
            lease.check()
            active.finish_mlflow_runs()
            best = search_run.best_trial()
            if best is None:
                raise UserError(
                    f"no trial of '{search_run.name}' has produced a model; see {shown_folder}/trials for their errors"
                )
            requests.effect = FINISHES
            presence.progress = presence.progress | {"phase": REGISTRATION}
            presence.write()  # at once, because it takes less time than is between two signs of life
            with refusals_explained():
                finalize(search_run, sync, best)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            active.upload_journal()
            if not lease.lost:  # else the run in MLflow is that of another process
                sync.update(folder, status)
            if status == "FINISHED":
                sync.wait()
                uploads.wait()


def _run_trials(active: ActiveSearch, presence: Presence, requests: SearchStopRequests, measure: Measure) -> None:
    """Run the remaining trials, then the confirmation.

    Args:
        active: the search.
        presence: gets to know how far it is.
        requests: requests to stop the search or a trial.
        measure: measures what trials take of a GPU.

    Raises:
        UserError: there are too few CPUs or GPUs, or a configuration cannot be trained.
        KeyboardInterrupt: a stop was asked for before the search had come to its end.
    """
    search_run, console = active.search_run, active.console
    search, study = search_run.search, search_run.study
    config = search_run.first_configuration
    workers = config.train.workers
    with connected() as cluster, contextlib.ExitStack() as until_end:
        if workers > cluster.cpus:
            raise UserError(f"train.workers {workers} needs as many CPUs, there are {cluster.cpus}")
        chosen = search.search.gpus
        share = TrialShare(gpus_for(config.train, cluster, None if chosen == "auto" else chosen))
        data = ray.put(FieldData.load(search_run.store, config.data))
        if chosen == "auto" and share.gpus:
            share = _share_gpus(active, cluster, requests, data, measure)
        room = cluster.trials(workers, share.gpus, share.threads)
        concurrency = useful_concurrency(search.search, room)
        if os.environ.get("RAY_ADDRESS"):
            console.print(cluster.describe(workers, share.gpus, concurrency), highlight=False, soft_wrap=True)
        if concurrency < room and search.search.concurrency is None:
            console.print(
                f"{search_run.name}: there is room for {room} trials at a time, but only {concurrency} run, so that "
                "the sampler learns from some before it proposes the others; more trials use more, and "
                "search.concurrency sets their number",
                highlight=False,
                soft_wrap=True,
            )
        flag = new_stop_flag()
        budgets = Budgets(study, search, active.index, concurrency=concurrency)
        budgets.confirmation_seconds = search_run.confirmation_seconds()
        searcher = StudySearcher(study, search, active.upload_journal, budgets)
        searcher.trained_seconds = search_run.trained_seconds
        for number in searcher.progress.paused:  # an earlier end of the search has completed their runs
            active.sync.update(search_run.folder.trial(number), "SCHEDULED")
        if workers > 1:
            searcher.end_training = lambda number, epoch: flag.end.remote(trial_name(number), epoch)
        tune_folder = until_end.enter_context(
            tempfile.TemporaryDirectory(prefix="mcrnn-tune-", ignore_cleanup_errors=True)
        )

        def stop() -> None:
            searcher.ending, active.interrupted = "it was interrupted", True
            flag.request.remote()

        until_end.enter_context(on_stop(stop))
        until_end.enter_context(requests.handled_by(stop))
        progress = PresenceCallback(presence, searcher)
        context = TrialContext(
            search.without_database(),
            search_run.field,
            search_run.folder,
            data=data,
            share=share,
            concurrency=concurrency,
            stop=flag,
        )
        trial_runner = TrialRunner(
            tune.with_parameters(run_trial, context=context),
            tune_folder,
            search_run.lease,
            share.resources if workers == 1 else cluster.coordinator_resources,
            concurrency,
            config.train.max_failures if workers == 1 else 0,  # Ray Train itself replaces the workers that are lost
            lambda: active.interrupted,
        )
        if stop_reason(study, search.search, searcher.index) is None or searcher.interrupted_trials:
            search_run.folder.delete_summary()  # what it says will not hold any more
            with ProgressDisplay(
                search,
                search_run.name,
                console,
                budget=budget(searcher.index, search.search),
                done=searcher.index.ended,
                paused=searcher.progress.paused,
                best=searcher.index.smallest_error(),
            ) as display:
                trials = TrialCallback(active, stop)
                stop_trials = StopTrialsCallback(requests, searcher, flag, trials, display)
                trial_runner.run(
                    "ray",
                    [trials, display, progress, stop_trials],
                    search_alg=searcher,
                    scheduler=StudyScheduler(searcher),
                )
        if searcher.mistake:
            raise UserError(f"a trial cannot be trained, so the search has stopped: {searcher.mistake}")
        stopped = 0 if active.interrupted else searcher.conclude()
        reason = stop_reason(study, search.search, searcher.index)
        if reason is None or active.interrupted:
            raise KeyboardInterrupt
        paused = f"; {stopped} paused trials have been stopped, and a larger budget lets them go on" if stopped else ""
        console.print(f"{search_run.name}: {reason}{paused}", highlight=False, soft_wrap=True)
        if search_run.confirmation(active.index).missing:
            progress.note(CONFIRMATION)
        _confirm(active, trial_runner, searcher)


def _share_gpus(
    active: ActiveSearch, cluster: Cluster, requests: SearchStopRequests, data: Any, measure: Measure
) -> TrialShare:
    """Decide how many trials share a GPU, and print why.

    Raises:
        UserError: another process has taken the search over.
        KeyboardInterrupt: a stop was asked for.
    """

    def stop() -> None:
        active.interrupted = True

    def check() -> None:
        active.search_run.lease.check()
        if active.interrupted:
            raise KeyboardInterrupt

    active.console.print(
        "search.gpus auto: looking at the GPUs, and training on one for some seconds where that was not done before",
        highlight=False,
        soft_wrap=True,
    )
    with on_stop(stop), requests.handled_by(stop):
        share, line = share_gpus(active.search_run, cluster, data, measure, check)
        check()
    active.console.print(line, highlight=False, soft_wrap=True)
    return share


def _confirm(active: ActiveSearch, trial_runner: TrialRunner, searcher: StudySearcher) -> None:
    """Run the trainings of the confirmation that have not ended, round by round, as long as there is time for them.

    Raises:
        UserError: a configuration cannot be trained again, a training failed too often, or another process has taken
            the search over.
        KeyboardInterrupt: a stop was asked for.
    """
    search_run, budgets = active.search_run, searcher.budgets
    while (confirmation := search_run.confirmation(active.index)).missing:
        search_run.lease.check()
        budgets.confirmation_seconds = search_run.confirmation_seconds()
        trainings = budgets.affordable_trainings(confirmation)
        if not trainings:
            active.console.print("confirmation: no time is left for more of it", highlight=False)
            return
        active.console.print(
            f"confirmation: {len(trainings)} trainings of {confirmation.competing} configurations", highlight=False
        )
        callback = ConfirmationCallback(active, searcher)
        second_tries = set(callback.second_tries)
        proposals = [
            {"retrain": (each.name, each.values), "second_try": each.name in second_tries} for each in trainings
        ]
        trainings_to_run = TrainingList(proposals, lambda: active.interrupted or searcher.mistake is not None)
        trial_runner.run("ray-confirmation", [callback], search_alg=trainings_to_run)
        budgets.note_hours()
        if searcher.mistake:
            raise UserError(f"a configuration cannot be trained again: {searcher.mistake}")
        if active.interrupted:
            raise KeyboardInterrupt
        again = set(callback.second_tries) - second_tries
        failed = [each.name for each in trainings if not each.finished and each.name not in again]
        if failed:
            raise UserError(
                f"{', '.join(failed)}: {callback.last_error or 'the processes were lost too often'}; "
                "the same command tries again"
            )
