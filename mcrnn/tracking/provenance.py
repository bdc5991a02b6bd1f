"""Where a run came from: its file, code, packages, command and machine."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from mcrnn.config.document import find, shipped_folder
from mcrnn.passwords import mask_passwords
from mcrnn.storage.process import this_process

PACKAGES = ("mcrnn", "torch", "ray", "optuna", "mlflow", "numpy", "xarray", "zarr", "s3fs", "pydantic", "safetensors")
"""Packages that have an influence on results."""
DIGITS = 12
"""Hexadecimal digits of a file's digest that are shown."""


def code_version() -> str:
    """Return the version of this package."""
    try:
        return version("mcrnn")
    except PackageNotFoundError:
        return "of an unknown version"


def source_line(path: str) -> str:
    """Return a line that says which file a command has read, so that a job shows whether it is the one that was meant.

    Args:
        path: path of the file as the user has given it.

    Returns:
        Where the file is, whether it is one of those that are installed with the package, the beginning of its SHA-256
        digest, and the version of the code.

    Raises:
        UserError: there is no such file.
    """
    file = find(path).resolve()
    shipped = " (shipped with the package)" if file.is_relative_to(shipped_folder()) else ""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:DIGITS]
    return f"read {file}{shipped}, sha256 {digest}; mcrnn {code_version()}"


def origin() -> dict[str, Any]:
    """Describe this process.

    Returns:
        `command` (without passwords), `process` (as `mcrnn.storage.process.is_gone` takes it), `user`, `packages` and,
        where git knows them, `commit` and `dirty`.
    """
    return {
        "command": mask_passwords(" ".join([f"python -m {_module()}", *sys.argv[1:]])),
        "process": this_process(),
        "user": os.environ.get("USER") or str(os.getuid()),
        "packages": packages(),
        **commit(),
    }


def _module() -> str:
    """Return the module that `python -m` runs, or the name of the script."""
    name = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None)
    return name or Path(sys.argv[0]).name


def packages() -> dict[str, str]:
    """Return the versions of Python and of the packages that have an influence on results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> dict[str, Any]:
    """Find the git commit of this code.

    Returns:
        `commit`, and `dirty` if files of the package were changed since; empty where the package is not in a repository
        of its own.
    """
    folder = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder:
            return {}  # the package is installed below another repository, such as in its virtual environment
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "mcrnn"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


@functools.cache
def hardware() -> dict[str, Any]:
    """Describe this machine: host, processor, cores, memory in GB, and names of GPUs."""
    import torch  # only here: the tracking server and the MLflow UI need this module, but not PyTorch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "host": socket.gethostname(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": gpus,
    }


def numerics() -> dict[str, Any]:
    """Return what decides in which order PyTorch adds on the processors: its instruction set, and its threads now."""
    import torch

    return {"instruction_set": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def system_metrics() -> dict[str, float]:
    """Measure how busy this machine is; the names are those that MLflow shows as system metrics."""
    import torch

    memory = psutil.virtual_memory()
    found = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),  # mean since the last call
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found["system/gpu_0_memory_usage_percentage"] = 100 * (1 - free / total)
    return found
