"""The end of a search: the best model judged and registered, figures, and the summary."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from mcrnn.data.description import FieldDescription
from mcrnn.errors import UserError
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.metrics import rmse, rmse_normalized
from mcrnn.evaluation.scoring import score_baselines
from mcrnn.models import trained_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.search import confirmation
from mcrnn.search.search_run import SUMMARY_FILE, SearchRun, ranked_trials, remove_superseded_files
from mcrnn.search.study import TrialEnd, finished_trials, optuna_quiet
from mcrnn.storage.root import Storage
from mcrnn.tracking import registry
from mcrnn.tracking.mlflow_client import Run, mlflow_request
from mcrnn.tracking.registry import TEST_METRICS
from mcrnn.tracking.run_folder import METRICS_FILE, MODEL_FOLDER, write_record
from mcrnn.tracking.sync import RunSync, is_synced
from mcrnn.training.session import OBJECTIVE


def conclude(opened: SearchRun, mirrors: RunSync, best: FrozenTrial) -> None:
    """Judge and register the best model, and write the summary."""
    from mcrnn.reports import search_figures

    search = opened.search
    remove_superseded_files(opened)
    folder = opened.trial_folder(best.number)
    confirmed = confirmation.summarize_seeds(
        search, opened.folder, confirmation.planned_retrainings(search, ranked_trials(opened))
    )
    if confirmed:
        folder = opened.folder.child(confirmed[0]["folder"])
    _record_baselines(opened, mirrors)
    run = mirrors.now(folder)
    model = trained_model.load(folder.child(MODEL_FOLDER))
    judged = _evaluate_on_test_split(model, run, opened.storage)
    found = {
        "search": opened.name,
        "best": confirmed[0]["best"] if confirmed else best.user_attrs["result"]["best"],
        "trial": confirmed[0]["trial"] if confirmed else best.number,
    }
    if confirmed:
        found |= {"mean": confirmed[0]["mean"], "std": confirmed[0]["std"], "seeds": confirmed[0]["seeds"]}
    version, alias = mlflow_request(
        lambda: registry.register(
            run,
            folder.child(MODEL_FOLDER),
            opened.model_name,
            found=found,
            judged=judged,
            origin=mirrors.tracker.origin,
        )
    )
    rows = [
        {
            "trial": t.number,
            "end": t.user_attrs.get("end", TrialEnd.FAILED),
            "values": search.values(t.params),
            "epochs": search.configuration(search.values(t.params)).train.epochs,
            **t.user_attrs.get("result", {}),
        }
        for t in finished_trials(opened.study)
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


def _evaluate_on_test_split(model: TrainedModel, run: Run, storage: Storage) -> dict[str, Any] | None:
    """The champion's errors on the test split, which are added to its run; None where its samples are too short."""
    from mcrnn.evaluation.result import evaluate_model
    from mcrnn.reports import evaluation_report
    from mcrnn.reports.evaluation_tables import Group

    try:
        judged = evaluate_model(run.run_id, model, storage)
    except UserError as error:
        print(f"warning: the model was not judged on the test split: {error}", file=sys.stderr)
        return None
    run.log_metrics({f"test_{name}": judged.metrics[name] for name in TEST_METRICS})
    with tempfile.TemporaryDirectory(prefix="mcrnn-report-") as place:
        files = evaluation_report.write([Group(judged.metrics["architecture"], [judged], [])], Path(place))
        run.log_files(files, "evaluation")
    return judged.metrics


def _record_baselines(opened: SearchRun, mirrors: RunSync) -> None:
    """Runs of persistence and climatology beside the trials, judged as they are."""
    first = opened.search.first_configuration()
    asked, field = first.validation, FieldDescription.of(opened.store, first.data)
    folders_of = {name: opened.folder.child(f"baselines/{name}") for name in ("persistence", "climatology")}
    if all(is_synced(folder) for folder in folders_of.values()):
        return
    evaluation_set = EvaluationSet.of_validation(opened.store, first)
    channels = first.model.channels_out or len(field.channels)
    std = np.array(field.std[:channels])
    scores = score_baselines(evaluation_set, channels)
    for name, folder in folders_of.items():
        tags = {"mcrnn.kind": "baseline", "mcrnn.search": opened.name}
        write_record(folder, name, tags=tags, params={"model": {"architecture": name}})
        metrics = {
            "epoch": 0,
            "time": time.time(),
            "rmse_closed_loop": rmse(scores[name].squared, 2, asked.horizon + 1),
            OBJECTIVE: rmse_normalized(scores[name].squared, 2, asked.horizon + 1, std),
        }
        folder.write(METRICS_FILE, f"{json.dumps(metrics | {'best': metrics[OBJECTIVE]})}\n".encode())
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
