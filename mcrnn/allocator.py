"""Memory of the process, on Linux."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 1 << 30
"""bytes"""


def keep_freed_memory() -> None:
    """Have the C library keep up to a gigabyte of what is freed, where it would give it back to the kernel.

    On processors each step of a training frees its activations and asks for as much again. Given back in between,
    every page of it is a fault of its own, which in a virtual machine costs more than to reckon with it. A process
    grows no larger by this than it was at its largest. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, KEPT)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)
    except (OSError, AttributeError):
        return
