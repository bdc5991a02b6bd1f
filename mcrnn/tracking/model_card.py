"""What is said of a model in the registry: what it is, of what data, how good, and where it ends."""

from __future__ import annotations

from typing import Any

from mcrnn.models.trained_model import TrainedModel


def card(
    model: TrainedModel,
    name: str,
    version: int,
    run_id: str,
    found: dict[str, Any],
    judged: dict[str, Any] | None,
) -> str:
    """A model card in Markdown.

    Args:
        model: it.
        name: in the registry.
        version: of that name.
        run_id: of its training.
        found: how it was found: search, trial, best and, of several seeds, mean and std.
        judged: metrics of the test split, where it could be judged.
    """
    config, field = model.config, model.field
    channels, height, width = field.frame_shape
    unit = "" if field.units == "1" else f" {field.units}"
    step = field.time_step if field.time_step != "1" else "1 time unit"
    quantity = ", ".join(field.channels)
    parameters = sum(weight.numel() for weight in model.network.parameters())
    evaluation_set = f"{config.validation.warm_up} frames given, {config.validation.horizon} steps in closed loop"
    several = f"; mean of {found['seeds']} seeds {found['mean']:.4f} ± {found['std']:.4f}" if "mean" in found else ""
    lines = [
        f"**{config.model.architecture}**, hidden size {config.model.hidden_size}, {config.model.layers} layers, "
        f"{parameters:,} parameters; predicts the {'next frame' if config.model.prediction == 'frame' else 'increment'}"
        " and runs in closed loop on its own output.",
        "",
        f"**Field**: {quantity}{f' [{field.units}]' if unit else ''}, {height} x {width}, {step} apart. "
        f"Trained on `{config.data.store}`, digest `{field.store_digest[:12]}`.",
        "",
        f"**Validation** ({evaluation_set}): closed-loop RMSE {found['best']:.4f} of the training split's standard "
        f"deviation{several}. Search {found['search']}, trial {found['trial']}.",
        "",
    ]
    if judged:
        lines += [
            f"**Test** ({judged['windows']} windows, the same evaluation_set):",
            "",
            f"| | RMSE{unit and ' in' + unit} | over the standard deviation |",
            "|---|---|---|",
            f"| teacher forced | {judged['rmse_teacher_forced']:#.3g} | |",
            f"| **closed loop** | **{judged['rmse_closed_loop']:#.3g}** | "
            f"**{judged['rmse_closed_loop_normalized']:#.3g}** |",
            *(
                f"| {baseline} | {errors['rmse_closed_loop']:#.3g} | {errors['rmse_closed_loop_normalized']:#.3g} |"
                for baseline, errors in judged["baselines"].items()
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
        f'forecast = model.predict(frames, params={{"steps": {config.validation.horizon}}})',
        "# frames: float32 (batch, time, channel, height, width) in the field's units",
        "```",
        "",
        f"**Limits**: takes {grid}{coarse}, frames {step} apart, {channels} channel"
        f"{'s' if channels > 1 else ''}; judged for the horizon above, and not beyond it. The boundary is "
        f"{config.model.padding or field.padding}.",
    ]
    return "\n".join(lines)
