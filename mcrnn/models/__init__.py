"""The five convolutional recurrent forecasters, in plain PyTorch."""

from mcrnn.models.forecaster import Forecaster
from mcrnn.models.sizing import model_cost, parameter_count, width_for, with_resolved_width

__all__ = ["Forecaster", "model_cost", "parameter_count", "width_for", "with_resolved_width"]
