"""Check that a store can serve a configuration before anything is loaded or started."""

from __future__ import annotations

from mcrnn.config.sections import Configuration
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import check_length
from mcrnn.errors import UserError, did_you_mean


def check_store_serves(store: FieldStore, config: Configuration) -> None:
    """Refuse a configuration that the store cannot serve.

    Args:
        store: the store that the configuration names.
        config: the configuration of a training.

    Raises:
        UserError: the grid, the variables, their weights or the length of the samples do not fit, or a variable does
            not vary.
    """
    variables = config.data.variables
    for channel, low, high in zip(
        variables or store.channels, store.statistic("min", variables), store.statistic("max", variables), strict=True
    ):
        if low == high and channel in store.inputs:
            raise UserError(
                f"{channel} of '{store.name}' is {low:g} at all points and times of the training split, which tells a "
                "model nothing: name the other channels in data.variables"
            )
        if low == high:
            raise UserError(
                f"{channel} of '{store.name}' is {low:g} at all points and times of the training split, so that its "
                "errors cannot be normalised: name the other channels in data.variables"
            )
    height, width = store.grid(config.data.coarsen)
    padding, reach = config.model.padding or store.padding, config.model.kernel_size // 2
    # A field that continues at the opposite edge can do so once only.
    if (padding != "zeros" and width < reach) or (padding == "circular" and height < reach):
        raise UserError(
            f"model.kernel_size {config.model.kernel_size} is too large for a grid of {height} x {width}: make it "
            "smaller, or data.coarsen"
        )
    names, predicted = variables or store.channels, config.model.channels_out
    channels = sum(name not in store.inputs for name in names)
    if predicted is not None and predicted > channels:
        without = " that are no inputs" if channels < len(names) else ""
        raise UserError(f"model.channels_out ({predicted}) is above the number of variables{without} ({channels})")
    names = [name for name in names if name not in store.inputs][:predicted]
    for name in config.validation.channel_weights or {}:
        if name not in names:
            raise UserError(f"validation.channel_weights: '{name}' is no predicted variable{did_you_mean(name, names)}")
    length, validation = config.data.sequence_length, config.validation
    frames, segments = store.array("train").shape[1], store.segments("train")
    check_length(frames, length + 1, f"data.sequence_length {length}", segments)
    check_length(
        store.array("val").shape[1],
        validation.warm_up + validation.horizon + 1,
        f"validation with warm_up {validation.warm_up} and horizon {validation.horizon}",
        store.segments("val"),
    )
