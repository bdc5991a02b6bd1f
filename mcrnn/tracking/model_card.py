"""The model card of a registered model: what it is, its data, its errors, and its limits."""

from __future__ import annotations

from typing import Any

from mcrnn.models.ensemble import Ensemble
from mcrnn.models.trained_model import TrainedModel


def card(
    model: TrainedModel,
    name: str,
    version: int,
    run_id: str,
    found: dict[str, Any],
    test_metrics: dict[str, Any] | None,
) -> str:
    """Return the model card in Markdown.

    Args:
        model: the model.
        name: name of the registered model.
        version: version of that name.
        run_id: id of the run in which the model was trained.
        found: how the model was found: `search`, `trial`, `best` (the validation error) and, where it was confirmed
            with several seeds, `mean`, `std`, `seeds` and `statement`.
        test_metrics: metrics of the test split; None where the model could not be evaluated on it.
    """
    config, field = model.config, model.field
    channels, height, width = field.frame_shape
    unit = "" if field.units == "1" else f" {field.units}"
    step = field.time_step if field.time_step != "1" else "1 time unit"
    quantity = ", ".join(field.predicted)
    start = ', "start": "2018-03-01T06:00"' if field.forcings else ""
    lengths = f"{config.validation.warm_up} frames given, {config.validation.horizon} steps in closed loop"
    lengths += config.validation.weighting
    several = f"; with this configuration {found['statement']}" if "mean" in found else ""
    lines = [
        _what(model),
        "",
        f"**Field**: {quantity}{f' [{field.units}]' if unit else ''}, {height} x {width}, {step} apart. "
        f"Trained on `{config.data.store}`, digest `{field.store_digest[:12]}`.",
        "",
        *(
            [f"**Inputs** that are not predicted, after these channels: {', '.join(field.inputs)}.", ""]
            if field.inputs
            else []
        ),
        f"**Validation** ({lengths}): closed-loop RMSE {found['best']:.4f} of the training split's standard "
        f"deviation{several}. Search {found['search']}, trial {found['trial']}.",
        "",
    ]
    if test_metrics:
        lines += [
            f"**Test** ({test_metrics['windows']} windows, of the same lengths):",
            "",
            f"| | RMSE{unit and ' in' + unit} | over the standard deviation |",
            "|---|---|---|",
            f"| teacher forced | {_figure(test_metrics['rmse_teacher_forced'])} | |",
            f"| **closed loop** | **{_figure(test_metrics['rmse_closed_loop'])}** | "
            f"**{_figure(test_metrics['rmse_closed_loop_normalized'])}** |",
            *(
                f"| {baseline} | {_figure(errors['rmse_closed_loop'])} | "
                f"{_figure(errors['rmse_closed_loop_normalized'])} |"
                for baseline, errors in test_metrics["baselines"].items()
            ),
            "",
            f"Figures: `evaluation/` among the artifacts of run `{run_id}`.",
            "",
        ]
    grid = "any grid" if model.network.takes_any_grid else f"a grid of {height} x {width} only (its norm is over it)"
    coarse = (
        f" after averaging blocks of {config.data.coarsen} x {config.data.coarsen}" if config.data.coarsen > 1 else ""
    )
    lines += [
        "**Use**:",
        "",
        "```python",
        f'model = mlflow.pyfunc.load_model("models:/{name}/{version}")',
        f'forecast = model.predict(frames, params={{"steps": {config.validation.horizon}{start}}})',
        "# frames: float32 (batch, time, channel, height, width) in the field's units",
        *(["# start: date of the last given frame, or of each forecast, separated by commas"] if start else []),
        "```",
        "",
        f"**Limits**: takes {grid}{coarse}, frames {step} apart, {channels} channel"
        f"{'s' if channels > 1 else ''}; evaluated for the horizon above, and not beyond it. The boundary is "
        f"{config.model.padding or field.padding}.",
    ]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    """Format an error; there is none over channels of different units."""
    return "–" if value is None else f"{value:#.3g}"


def _what(model: TrainedModel) -> str:
    """Say what the model is."""
    parameters = sum(weight.numel() for weight in model.network.parameters())
    if isinstance(model, Ensemble):
        members = ", ".join(
            f"{name} ({each.architecture}{f', {count} times' if count > 1 else ''})"
            for name, each, count in zip(model.names, model.members, model.counts, strict=True)
        )
        return f"**{model.architecture}**: the mean of the forecasts of {members}; {parameters:,} parameters in all."
    config = model.config.model
    return (
        f"**{config.architecture}**, hidden size {config.hidden_size}, {config.layers} layers, {parameters:,} "
        f"parameters; predicts the {'next frame' if config.prediction == 'frame' else 'increment'} and runs in closed "
        "loop on its own output."
    )
