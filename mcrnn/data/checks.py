"""Whether a store serves a configuration."""

from __future__ import annotations

from mcrnn.config.sections import Configuration
from mcrnn.data.store import FieldStore
from mcrnn.data.windows import check_length
from mcrnn.errors import UserError


def check_store_serves(store: FieldStore, config: Configuration, sequence_length: int | None = None) -> None:
    """Refuse, before anything is loaded or started, a configuration that the store cannot serve.

    Raises:
        UserError: the grid, the variables or the length of the samples do not fit.
    """
    height, width = store.grid(config.data.coarsen)
    padding, reach = config.model.padding or store.padding, config.model.kernel_size // 2
    if (padding != "zeros" and width < reach) or (padding == "circular" and height < reach):
        raise UserError(
            f"model.kernel_size {config.model.kernel_size} is too large for a grid of {height} x {width}: make it "
            "smaller, or data.coarsen"
        )
    channels, predicted = len(store.indices(config.data.variables)), config.model.channels_out
    if predicted is not None and predicted > channels:
        raise UserError(f"model.channels_out ({predicted}) is above the number of variables ({channels})")
    evaluation_set, length = config.validation, sequence_length or config.data.sequence_length
    check_length(store.array("train").shape[1], length + 1, f"data.sequence_length {length}")
    check_length(
        store.array("val").shape[1],
        evaluation_set.warm_up + evaluation_set.horizon + 1,
        f"validation with warm_up {evaluation_set.warm_up} and horizon {evaluation_set.horizon}",
    )
