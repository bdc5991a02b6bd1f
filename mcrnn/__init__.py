"""Training and hyperparameter search for convolutional recurrent forecasters of spatiotemporal fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcrnn.models.trained_model import TrainedModel
    from mcrnn.storage.root import Storage

__version__ = "0.1.0"


def load_model(uri: str, storage: Storage | None = None) -> TrainedModel:
    """Load a trained model, ready to forecast.

        from mcrnn import load_model

        model = load_model("models:/mcrnn-demo@champion")
        forecast = model.predict(frames, steps=30)

    `predict` takes and returns NumPy arrays, PyTorch tensors, (batch, time, channel, height, width), or
    xarray.DataArrays, in the units of the field. Only weights and configuration are read; no code of the model is run.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION` in the model registry, `runs:/RUN_ID/model` in MLflow, or a
            folder: a model directory, or the folder of a run such as `runs/NAME`.
        storage: the storage root, to which a folder is relative; by default MCRNN_STORAGE, or the current folder.

    Raises:
        UserError: there is no such model.
    """
    # imported only here, so that `import mcrnn`, and with it each command's --help, loads no PyTorch
    from mcrnn.tracking import model_loading

    return model_loading.load_model(uri, storage)


def __getattr__(name: str) -> Any:
    """Return the module that a model registered by version 0.1.0 imports under its name of that time.

    MLflow runs the loader that came with such a model. In a process that has imported this version, the imports of the
    loader find this version's code.
    """
    if name == "model_directory":
        from mcrnn.models import trained_model

        return trained_model
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
