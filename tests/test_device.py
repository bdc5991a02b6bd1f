"""The choice of a device."""

from __future__ import annotations

import pytest
import torch

from mcrnn.device import choose_device
from mcrnn.errors import UserError


@pytest.mark.parametrize("name", [None, "auto"])
@pytest.mark.parametrize(("is_available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_used_where_there_is_one(
    name: str | None, is_available: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    assert choose_device(name, "--device") == torch.device(expected)


def test_the_cpu_can_be_asked_for_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cpu", "--device") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:99"])
def test_a_device_that_cannot_be_used_is_named_in_one_line(name: str) -> None:
    with pytest.raises(
        UserError, match=f"^train.device {name} cannot be used on this machine .*; leave it out"
    ) as raised:
        choose_device(name, "train.device")
    assert "\n" not in str(raised.value)
