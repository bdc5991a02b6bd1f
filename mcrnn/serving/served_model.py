"""Which model is served, and the change to another when its alias moves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.retry import print_warning
from mcrnn.storage.root import Storage
from mcrnn.tracking import model_loading
from mcrnn.tracking.mlflow_client import client_of, tracking_uri


@dataclass(frozen=True)
class ServedModel:
    """A model that requests are computed with.

    Attributes:
        model: the model.
        identity: which model it is; see `LoadedModel.identity`.
        reference: the model in Ray's object store.
    """

    model: TrainedModel
    identity: dict[str, str]
    reference: Any


class FollowedModel:
    """The model that a name stands for now.

    A request keeps the model that it has begun with. When the alias has moved, the next requests get the new model,
    once it has been read completely.

    Args:
        name: registry URI, run URI or folder.
        storage: the storage root.
        put: puts a model into the object store, and returns the reference.
        on_change: called with the new model.

    Raises:
        UserError: there is no such model.
    """

    def __init__(
        self,
        name: str,
        storage: Storage,
        put: Callable[[TrainedModel], Any],
        on_change: Callable[[ServedModel], None] = lambda served: None,
    ) -> None:
        self.name, self.storage, self._put, self._on_change = name, storage, put, on_change
        self._ended = threading.Event()
        self.current = self._load()
        on_change(self.current)

    @property
    def can_move(self) -> bool:
        """Whether the name is an alias, which may be moved."""
        return self.name.startswith("models:/") and "@" in self.name

    def follow(self, seconds: float) -> None:
        """Look every so often, in a thread, whether the alias has moved."""
        if self.can_move:
            threading.Thread(target=self._follow, args=(seconds,), daemon=True, name="follower").start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()

    def _load(self) -> ServedModel:
        loaded = model_loading.find(self.name, self.storage)
        return ServedModel(loaded.model, loaded.identity(self.name), self._put(loaded.model))

    def _follow(self, seconds: float) -> None:
        is_reachable = True
        while not self._ended.wait(seconds):
            try:
                version = model_loading.find_version(client_of(tracking_uri(self.storage)), self.name).version
                if str(version) != self.current.identity.get("model_version"):
                    self.current = self._load()
                    self._on_change(self.current)
                is_reachable = True
            except Exception as error:  # whatever MLflow's client or its server has, the model that is there is served
                if is_reachable:
                    print_warning(f"the alias of {self.name} cannot be looked up; the model stays as it is ({error})")
                is_reachable = False
