"""Whether a store can serve a search, before anything is started or written."""

from __future__ import annotations

from mcrnn.config.space import Search
from mcrnn.data.checks import check_exam
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.models import sized
from mcrnn.storage.root import Storage


def check(search: Search, storage: Storage) -> FieldStore:
    """Whether the store can serve all of a search; nothing is written.

    Raises:
        UserError: the store cannot be used, its samples are too short, or no width comes near a budget of parameters.
    """
    first = search.first_configuration()
    store = FieldStore.open(storage.location(first.data.store))
    frame_shape = FieldDescription.of(store, first.data).frame_shape
    for values in search.space.corners():
        config = sized(search.configuration(values), frame_shape)
        check_exam(store, config)
    return store
