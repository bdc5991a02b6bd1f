"""The end of a search: the best model is evaluated and registered, figures are drawn, and the summary is written."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from mcrnn.errors import UserError
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.metrics import rmse, rmse_normalized
from mcrnn.evaluation.scoring import score_baselines
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.search import ensemble as ensembles
from mcrnn.search.attributes import END, RESULT, TrialEnd
from mcrnn.search.budgets import time_limits
from mcrnn.search.confirmation import Confirmation, statement
from mcrnn.search.importance import importance
from mcrnn.search.parameters import values_of
from mcrnn.search.search_run import SearchRun
from mcrnn.search.study import finished_trials
from mcrnn.storage.retry import print_warning
from mcrnn.storage.root import Storage
from mcrnn.tracking import registry
from mcrnn.tracking.mlflow_client import Run, mlflow_request
from mcrnn.tracking.registry import test_errors
from mcrnn.tracking.run_folder import SUMMARY_FILE, RunFolder
from mcrnn.tracking.sync import RunSync, is_synced
from mcrnn.training.session import OBJECTIVE


def finalize(search_run: SearchRun, sync: RunSync, best: FrozenTrial) -> None:
    """Evaluate and register the best model, and write the summary.

    Args:
        search_run: a search whose trials and confirmation have ended.
        sync: sends the runs to MLflow.
        best: the best trial. The model registered is that of this trial, or of the best confirmed configuration.

    Raises:
        UserError: another process has taken the search over, and registers its model.
    """
    search_run.lease.check()
    search, study = search_run.search, search_run.study
    search_run.remove_superseded_files()
    folder = search_run.folder.trial(best.number)
    found: dict[str, Any] = {
        "search": search_run.name,
        "best": best.user_attrs[RESULT]["best"],
        "trial": best.number,
    }
    confirmation = search_run.confirmation()
    confirmed = confirmation.rows(search)
    confirmation_summary = _summarize(search_run, confirmation, confirmed)
    if confirmed:
        winner = confirmed[0]
        folder = RunFolder(search_run.folder.location.child(winner["folder"]))
        found |= {key: winner[key] for key in ("best", "trial", "mean", "std", "seeds", "interval")}
        found |= {key: confirmation_summary[key] for key in ("configurations", "trials", "statement")}
    _record_baselines(search_run, sync)
    run = sync.update_now(folder, "FINISHED")
    model = trained_model.load(folder.model)
    test_metrics = _evaluate_on_test_split(model, run, search_run.storage)
    search_run.lease.check()  # the evaluation took its time
    version, alias = mlflow_request(
        lambda: registry.register(
            run,
            folder.model,
            search_run.model_name,
            found=found,
            test_metrics=test_metrics,
            origin=sync.tracker.origin,
        )
    )
    ensemble = _make_ensemble(search_run, sync)
    rows = [
        {
            "trial": t.number,
            "end": t.user_attrs.get(END, TrialEnd.FAILED),
            "values": values_of(t),
            "epochs": search.configuration(values_of(t)).train.epochs,
            **t.user_attrs.get(RESULT, {}),
        }
        for t in finished_trials(study)
    ]
    several_objectives = len(search.search.objectives) > 1
    summary = {
        "search": search_run.name,
        "best_trial": found["trial"],
        "best": found["best"],
        "confirmed": confirmed,
        "confirmation": confirmation_summary or None,
        "seeds": search.search.confirm.seeds if search.search.confirm else 0,
        "importance": importance(study),
        "front": [t.number for t in study.best_trials] if several_objectives else [],
        "test": test_errors(test_metrics) if test_metrics else None,
        "run_id": run.run_id,
        "model": search_run.model_name,
        "version": version,
        "alias": alias,
        "ensemble": ensemble,
        "trials": rows,
    }
    own_run = sync.update_now(search_run.folder)
    own_run.log_metrics({"best": summary["best"]})
    own_run.set_tags({"mcrnn.best_trial": str(summary["best_trial"]), "mcrnn.model_version": str(version)})
    if not several_objectives:
        _draw_figures(search_run, own_run, rows, summary["importance"])
    own_run.log_json({SUMMARY_FILE: summary})
    search_run.folder.write_summary(summary)  # the last: a search that has a summary is finished


def _summarize(search_run: SearchRun, confirmation: Confirmation, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the summary says of a confirmation as a whole; empty where `search.confirm` asks for none."""
    config = search_run.search.search
    if config.confirm is None:
        return {}
    configurations, trials = len(confirmation.competitors), len(finished_trials(search_run.study))
    budgets = ((config.hours, "hours"), (config.trial_hours, "trial hours"))
    limits = [f"{limit:g} {name}" for limit, name in budgets if limit is not None]
    unfinished = f"its {' and '.join(limits)} left no time for more" if confirmation.missing else None
    said = "not confirmed: there was no time for one other seed of each configuration"
    if rows:
        said = statement(rows[0], configurations, trials)
    elif not confirmation.missing:
        said = "not confirmed: all trainings with other seeds have failed"
    return {
        "statement": said,
        "configurations": configurations,
        "trials": trials,
        "unfinished": unfinished,
        "configurations_asked": config.confirm.configurations,
        "limits": time_limits(config),
    }


def _make_ensemble(search_run: SearchRun, sync: RunSync) -> dict[str, Any] | None:
    """Pick, evaluate and register the ensemble; returns what the summary says of it, None where none was asked for."""
    asked = search_run.search.search.ensemble
    if not asked:
        return None
    built = ensembles.build(search_run)
    if built is None:
        return {"asked": asked, "members": []}
    ensemble, found = built
    run = ensembles.record(search_run, sync, ensemble, found)
    test = _evaluate_on_test_split(ensemble, run, search_run.storage)
    search_run.lease.check()
    judged = ensembles.register_and_judge(search_run, sync, run, found, test)
    return {"asked": asked, **found, "test": test_errors(test) if test else None, **judged}


def _draw_figures(search_run: SearchRun, own_run: Run, rows: list[dict[str, Any]], shares: dict[str, float]) -> None:
    """Draw figures of the trials, into the folder of the search and its run."""
    from mcrnn.reports import search_figures

    with tempfile.TemporaryDirectory(prefix="mcrnn-figures-") as folder:
        pictures = search_figures.draw(Path(folder), rows, list(search_run.search.space), shares)
        for picture in pictures:
            search_run.folder.write_figure(picture.name, picture.read_bytes())
        own_run.log_files(pictures, "figures")


def _evaluate_on_test_split(model: TrainedModel, run: Run, storage: Storage) -> dict[str, Any] | None:
    """Evaluate a model on the test split of its store, and add the errors and the report to its run.

    Returns:
        The metrics; None where the samples of the test split are too short.
    """
    from mcrnn.evaluation.result import evaluate_model
    from mcrnn.reports import evaluation_report
    from mcrnn.reports.evaluation_tables import Group

    try:
        result = evaluate_model(run.run_id, model, storage)
    except UserError as error:
        print_warning(f"the model was not evaluated on the test split: {error}")
        return None
    run.log_metrics({f"test_{name}": value for name, value in test_errors(result.metrics).items()})
    with tempfile.TemporaryDirectory(prefix="mcrnn-report-") as folder:
        files = evaluation_report.write([Group(result.metrics["architecture"], [result], [])], Path(folder))
        run.log_files(files, "evaluation")
    return result.metrics


def _record_baselines(search_run: SearchRun, sync: RunSync) -> None:
    """Record persistence and climatology as runs beside the trials, evaluated on the same validation windows."""
    config = search_run.first_configuration
    folders = {name: search_run.folder.baseline(name) for name in ("persistence", "climatology")}
    if all(is_synced(folder) for folder in folders.values()):
        return
    evaluation_set = EvaluationSet.of_validation(search_run.store, config)
    field = search_run.field
    channels = config.model.channels_out or len(field.predicted)
    scales = np.array(config.validation.error_scales(field.channels[:channels], field.std[:channels]))
    scores = score_baselines(evaluation_set, channels)
    last = config.validation.horizon + 1  # lead time of the last closed-loop step; the first one has lead time 2
    for name, folder in folders.items():
        tags = {"mcrnn.kind": "baseline", "mcrnn.search": search_run.name}
        folder.write_record(name, tags=tags, params={"model": {"architecture": name}})
        normalized = rmse_normalized(scores[name].squared, 2, last, scales)
        metrics = {
            "epoch": 0,
            "time": time.time(),
            "rmse_closed_loop": rmse(scores[name].squared, 2, last),
            OBJECTIVE: normalized,
            "best": normalized,
        }
        folder.write_metrics([metrics])
        sync.update(folder, "FINISHED")
