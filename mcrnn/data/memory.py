"""How much memory a process can still take: that of a GPU, and that of the machine, or of its container or batch job
where less is left.

Containers and batch systems such as Slurm limit memory by control groups, of which the machine's own figures say
nothing. A process that exceeds the limit is killed.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mcrnn.errors import UserError

if TYPE_CHECKING:
    import torch

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows control groups (https://docs.kernel.org/admin-guide/cgroup-v2.html)."""

FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Limit, use, and the entry of `memory.stat` for files that the kernel drops when memory is short; by the name that a
line of /proc/self/cgroup has for version 2 and for the memory controller of version 1."""

_processes = 1
"""Number of processes that share the budget of this machine."""


@contextlib.contextmanager
def budget_shared(processes: int) -> Iterator[None]:
    """Take an equal part of the budget inside the block, because several processes of this machine work together.

    Args:
        processes: their number, this one included.
    """
    global _processes
    before, _processes = _processes, processes
    try:
        yield
    finally:
        _processes = before


def memory_budget() -> float:
    """Return how many bytes a split may take: MCRNN_MEMORY (in GB), by default half of the memory that is free now.

    Inside `budget_shared` it is an equal part of that.

    Raises:
        UserError: MCRNN_MEMORY is not a number.
    """
    given = os.environ.get("MCRNN_MEMORY")
    if given is None:
        import psutil

        return min(psutil.virtual_memory().available, left_in_cgroups()) / 2 / _processes
    try:
        return float(given) * 1e9 / _processes
    except ValueError:
        raise UserError(f"MCRNN_MEMORY is a number of GB such as 16, not '{given}'") from None


def device_memory_budget(device: torch.device) -> float:
    """Return how many bytes of a device a split may take: half of what is free on it now; no limit but on GPUs of CUDA.

    Args:
        device: the device.
    """
    import torch

    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else math.inf


def left_in_cgroups(membership: Path = Path("/proc/self/cgroup"), cgroups: Path = CGROUPS) -> float:
    """Return the bytes that the control groups of a process leave it; infinity without a limit, and off Linux.

    Args:
        membership: File of lines `number:controllers:group`.
        cgroups: Where the groups are shown as folders.
    """
    left = math.inf
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controller, group = line.split(":", 2)
            if controller in FILES:
                top = cgroups / controller
                folder = top / group.lstrip("/")
                # A limit of any group above counts too. A container sees its own group as the top one.
                left = min(left, *(_left(above, *FILES[controller]) for above in (folder, *folder.parents)))
    return left


def _left(group: Path, limit: str, used: str, droppable: str) -> float:
    try:
        free = int((group / limit).read_text()) - int((group / used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, free + int(statistics[droppable]))
    except (OSError, ValueError, KeyError):  # no such group, or "max" for no limit
        return math.inf
