"""The ensemble of a search: models that forecast best together, picked greedily with replacement (Caruana et al. 2004).

Models are picked one after the other on the validation windows: each time the one that lowers the error of the mean
forecast most, which may be one that was picked before. The mean squared error of any mean of forecasts follows from the
mean products of the models' errors, so every model runs once and no forecast is kept.

The ensemble is a version of the registered model like any other. It becomes the champion only where it wins against the
champion on the test split; see `mcrnn.evaluation.promotion`.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import torch

from mcrnn.data.masks import mask_weights
from mcrnn.errors import UserError
from mcrnn.evaluation import promotion
from mcrnn.evaluation.comparison import Outcome
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.models import trained_model
from mcrnn.models.ensemble import Ensemble
from mcrnn.models.trained_model import TrainedModel
from mcrnn.search.search_run import SearchRun
from mcrnn.storage.retry import print_warning
from mcrnn.tracking import registry
from mcrnn.tracking.mlflow_client import Run, client_of, mlflow_request
from mcrnn.tracking.registry import CANDIDATE, CHAMPION
from mcrnn.tracking.run_folder import RECORD_FILE, SYNC_FILE, RunFolder
from mcrnn.tracking.sync import RunSync


def candidates(search_run: SearchRun) -> dict[str, RunFolder]:
    """Return the trainings whose models are there, by name: those of the best trials, and those of the confirmation."""
    folder, number = search_run.folder, search_run.search.search.kept_models
    found = {f"trial-{trial.number}": folder.trial(trial.number) for trial in search_run.ranked_trials()[:number]}
    found |= {each.name: each.folder for each in search_run.confirmation().started if each.error is not None}
    return {name: each for name, each in found.items() if trained_model.exists(each.model)}


@torch.no_grad()
def error_products(models: list[TrainedModel], evaluation_set: EvaluationSet, scales: np.ndarray) -> np.ndarray:
    """Return the mean product of the closed-loop errors of each two models, normalised.

    The root of an element on the diagonal is the model's validation error. A model whose errors are not finite has NaN.

    Args:
        models: the models, of one field.
        evaluation_set: the validation windows.
        scales: what the error of each predicted channel is divided by; see `ValidationConfig.error_scales`.
    """
    total_MM = np.zeros((len(models), len(models)))
    warm_up, steps = evaluation_set.warm_up, evaluation_set.steps
    networks = [model.network for model in models]
    mask_CHW = models[0].field.model_mask
    weights_CHW = None if mask_CHW is None else torch.tensor(mask_weights(mask_CHW[: networks[0].channels_out]))
    for batch in evaluation_set.batches(evaluation_set.batch_size(*networks, copies=2 * len(models))):
        errors = []
        for model in models:
            frames_BTCHW = batch.frames_BTCHW
            given_BTCHW = frames_BTCHW[:, : model.network.frames_read(warm_up, steps)]
            prediction_BTCHW = model.run(given_BTCHW, warm_up, steps)
            truth_BTCHW = frames_BTCHW[:, 1:, : model.network.channels_out]
            error_BTCHW = (prediction_BTCHW - truth_BTCHW)[:, warm_up:] / torch.as_tensor(scales)[:, None, None]
            error_BTCHW = error_BTCHW.double()
            if weights_CHW is not None:
                error_BTCHW = torch.where(weights_CHW > 0, error_BTCHW, 0.0) * weights_CHW.sqrt()
            errors.append(error_BTCHW.flatten())
        products = torch.stack(errors)
        total_MM += (products @ products.T / products.shape[1]).numpy() * len(batch.frames_BTCHW)
    return total_MM / len(evaluation_set)


def pick(products_MM: np.ndarray, picks: int) -> tuple[list[int], list[float]]:
    """Pick models one after the other, each time the one that makes the error of the mean smallest.

    Of the ensembles of 1 to `picks` models on that way, the one with the smallest error is taken.

    Args:
        products_MM: the mean products of the models' errors; a model with NaN is not picked.
        picks: largest number of picks.

    Returns:
        The index of each pick, and the error of the ensemble after each of them.
    """
    usable = [i for i in range(len(products_MM)) if np.isfinite(products_MM[i, i])]
    chosen: list[int] = []
    errors: list[float] = []
    for _ in range(picks if usable else 0):
        best = min(usable, key=lambda i: (_squared(products_MM, [*chosen, i]), i))
        chosen.append(best)
        errors.append(math.sqrt(_squared(products_MM, chosen)))
    last = int(np.argmin(errors)) + 1 if errors else 0
    return chosen[:last], errors[:last]


def _squared(products_MM: np.ndarray, chosen: list[int]) -> float:
    """Return the mean squared error of the mean of some models' forecasts."""
    return max(0.0, float(products_MM[np.ix_(chosen, chosen)].mean()))


def build(search_run: SearchRun) -> tuple[Ensemble, dict[str, Any]] | None:
    """Pick the members of the ensemble, and write it into the folder of the search.

    Returns:
        The ensemble and what the summary says of it; None where no ensemble is better than the best of the models.
    """
    asked = search_run.search.search.ensemble
    folders = candidates(search_run)
    models: dict[str, TrainedModel] = {}
    for name, folder in folders.items():
        try:
            models[name] = trained_model.load(folder.model)
        except UserError as error:
            print_warning(f"{name} cannot be a member of the ensemble: {error}")
    names, loaded = list(models), list(models.values())
    if not loaded:
        return None
    evaluation_set = EvaluationSet.of_validation(search_run.store, search_run.first_configuration)
    field, predicted = search_run.field, loaded[0].network.channels_out
    validation = search_run.first_configuration.validation
    scales = np.array(validation.error_scales(field.channels[:predicted], field.std[:predicted]))
    products_MM = error_products(loaded, evaluation_set, scales)
    chosen, errors = pick(products_MM, asked)
    if len(set(chosen)) < 2:
        return None
    counts = Counter(chosen)
    ensemble = Ensemble.of([loaded[i] for i in counts], list(counts.values()), [names[i] for i in counts])
    members = [
        {
            "name": names[i],
            "count": count,
            "architecture": loaded[i].architecture,
            "error": math.sqrt(products_MM[i, i]),
        }
        for i, count in counts.items()
    ]
    trained_model.save_ensemble(search_run.folder.ensemble.model, ensemble)
    found = {"members": members, "error": errors[-1], "best_member": errors[0], "candidates": len(loaded)}
    epochs = [epoch for i in counts for epoch in folders[names[i]].read_metrics()]
    return ensemble, found | {"seconds": sum(epoch.get("seconds", 0.0) for epoch in epochs)}


def record(search_run: SearchRun, sync: RunSync, ensemble: Ensemble, found: dict[str, Any]) -> Run:
    """Record the ensemble as a run in MLflow, beside the trials."""
    folder = search_run.folder.ensemble
    tags = {"mcrnn.kind": "ensemble", "mcrnn.search": search_run.name}
    tags |= {"mcrnn.members": ", ".join(f"{each['count']} x {each['name']}" for each in found["members"])}
    data = search_run.field.as_dataset(ensemble.config.data.store)
    params = {"model": {"architecture": ensemble.architecture}, "size": {"parameters": ensemble.cost.parameters}}
    before = folder.read_record()
    if before is not None and before["tags"] != tags:  # the search has gone on since: other models were picked
        for name in (RECORD_FILE, SYNC_FILE):
            folder.location.delete(name)
    folder.write_record("ensemble", tags=tags, params=params, dataset=data)
    run = sync.update_now(folder, "FINISHED")
    run.log_metrics({"best": found["error"], "seconds": found["seconds"]})
    return run


def register_and_judge(
    search_run: SearchRun, sync: RunSync, run: Run, found: dict[str, Any], test_metrics: dict[str, Any] | None
) -> dict[str, Any]:
    """Register the ensemble, and make it the champion where it is better than the champion beyond doubt.

    Returns:
        Version, whether it is the champion now, and the comparison in words.
    """
    name, client = search_run.model_name, client_of(run.tracking_uri)
    before = mlflow_request(lambda: registry.aliases(client, name)).get(CANDIDATE)
    members = ", ".join(f"{each['count']} x {each['name']}" for each in found["members"])
    origin = {"search": search_run.name, "trial": f"ensemble of {members}", "best": found["error"]}
    version, _ = mlflow_request(
        lambda: registry.register(
            run,
            search_run.folder.ensemble.model,
            name,
            found=origin,
            test_metrics=test_metrics,
            origin=sync.tracker.origin,
        )
    )
    try:
        outcome, comparison = mlflow_request(lambda: promotion.promote(search_run.storage, client, name, version))
        won = outcome is Outcome.BETTER
    except UserError as error:
        won, comparison = False, [str(error)]
    if before is not None and before != version:  # the best single model is still a candidate, by the name shown
        mlflow_request(lambda: client.set_registered_model_alias(name, CANDIDATE, str(before)))
    return {"version": version, "alias": CHAMPION if won else None, "comparison": ": ".join(comparison)}
