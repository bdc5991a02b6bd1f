"""The convolutional recurrent forecasters in plain PyTorch: cells, networks, their costs, and models as files.

Imports neither Ray, MLflow nor Optuna, and only what a registered model installs.
"""

from mcrnn.models.forecaster import Forecaster
from mcrnn.models.sizing import model_cost, parameter_count, width_for, with_resolved_sizes

__all__ = ["Forecaster", "model_cost", "parameter_count", "width_for", "with_resolved_sizes"]
