"""The model as MLflow's pyfunc loads it: code, not a pickle. MLflow runs this file when a model is loaded.

`predict(frames, params={"steps": n})` warms up on the given frames, (batch, time, channel, height, width) in
the field's units, and returns the forecasts of lead times 1 .. n in the same shape and units.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from mcrnn.models import trained_model
from mcrnn.storage.local import LocalFolder


class FieldForecaster(PythonModel):
    """A trained model behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        """Read the model directory among the artifacts."""
        self.model = trained_model.load(LocalFolder(Path(context.artifacts["model"])))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Forecast `params["steps"]` frames after those given."""
        return self.model.predict(np.asarray(model_input), int((params or {}).get("steps", 1)))


set_model(FieldForecaster())
