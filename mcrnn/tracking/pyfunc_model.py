"""The model as MLflow's pyfunc interface loads it. MLflow runs this file, so the model is code and files, no pickle.

`predict(frames, params={"steps": n})` warms up on the given frames, float32 (batch, time, channel, height, width) in
the units of the field, and returns the forecasts of lead times 1 .. n in the same layout and units. A model that takes
the solar angle or the day of the year needs the date of the last given frame as the parameter `start`, one for all
forecasts or one for each, separated by commas.

MLflow loads it also where this package is not installed, from the copy of the code that came with the model. So it may
need no packages beyond `mcrnn.tracking.registry.REQUIREMENTS`. In a process that has imported a later version of this
package, the imports below find that version's code, so they have to work in every later version.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from mcrnn.models import trained_model
from mcrnn.storage.local import LocalFolder


class FieldForecaster(PythonModel):
    """A trained model with the interface of MLflow's pyfunc."""

    def load_context(self, context: Any) -> None:
        """Load the model directory that is among the artifacts."""
        self.model = trained_model.load(LocalFolder(Path(context.artifacts["model"])))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Forecast the next `params["steps"]` frames, by default one."""
        asked = params or {}
        start = str(asked.get("start", "")).split(",") if asked.get("start") else None
        return self.model.predict(np.asarray(model_input), int(asked.get("steps", 1)), start=start)


set_model(FieldForecaster())
