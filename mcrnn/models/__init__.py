"""The five convolutional recurrent forecasters, in plain PyTorch."""

from mcrnn.models.forecaster import Forecaster
from mcrnn.models.sizing import parameter_count, sized, summary, width_for

__all__ = ["Forecaster", "parameter_count", "sized", "summary", "width_for"]
