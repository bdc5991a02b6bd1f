from __future__ import annotations

from typing import Any

import pytest
import torch

from mcrnn.storage.location import Location
from mcrnn.training.checkpoints import Checkpoints, deserialize, serialize


def save(checkpoints: Checkpoints, epoch: int, batch: int = 0) -> None:
    checkpoints.save(serialize({"epoch": epoch, "weights": torch.full((3,), float(epoch))}), epoch=epoch, batch=batch)


def load(checkpoints: Checkpoints, warnings: list[str] | None = None) -> dict[str, Any] | None:
    told = warnings if warnings is not None else []
    content = checkpoints.load(told.append)
    return None if content is None else deserialize(content)


def test_newest_is_loaded_and_the_last_two_stay(place: Location) -> None:
    checkpoints = Checkpoints(place)
    assert load(checkpoints) is None
    for epoch, batch in ((1, 0), (2, 0), (2, 30), (2, 4), (10, 0)):
        save(checkpoints, epoch, batch)
    newest = load(checkpoints)
    assert newest is not None
    assert newest["epoch"] == 10
    assert torch.equal(newest["weights"], torch.full((3,), 10.0))
    assert len(place.sizes()) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_newest_gives_way_to_the_one_before_with_a_warning(place: Location, damage: str) -> None:
    checkpoints, warnings = Checkpoints(place), list[str]()
    save(checkpoints, 1)
    save(checkpoints, 2)
    newest = max(place.sizes())
    content = bytearray(place.read(newest))
    content[len(content) // 2] ^= 1
    place.write(newest, {"flip": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[damage])
    state = load(checkpoints, warnings)
    assert state is not None
    assert state["epoch"] == 1
    (warning,) = warnings
    assert f"the checkpoint {newest} is damaged; going on from the one before" in warning
    assert load(checkpoints, warnings) is not None
    assert len(warnings) == 1  # the damaged one is gone


def test_nothing_but_damage_starts_anew(place: Location) -> None:
    checkpoints, warnings = Checkpoints(place), list[str]()
    save(checkpoints, 1)
    place.write(max(place.sizes()), b"nonsense")
    assert load(checkpoints, warnings) is None
    assert "there is none before it: starting anew" in warnings[0]


def test_planted_code_is_not_run(place: Location) -> None:
    import io

    class Planted:
        def __reduce__(self) -> Any:
            return (print, ("planted code ran",))

    buffer = io.BytesIO()
    torch.save({"model": Planted()}, buffer)
    Checkpoints(place).save(buffer.getvalue(), epoch=1, batch=0)
    content = Checkpoints(place).load(lambda _: None)
    assert content is not None
    with pytest.raises(Exception, match="Weights only load failed"):
        deserialize(content)
