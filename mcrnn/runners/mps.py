"""NVIDIA's multi-process service on a machine: started by the first process that shares a GPU, ended after the last.

Without it, processes on a GPU take turns: at any time, kernels of one of them run. With it they run side by side
(https://docs.nvidia.com/deploy/mps/). Its daemon is found by the folder of its pipes: a process that is to use it has
CUDA_MPS_PIPE_DIRECTORY in its environment before it initialises CUDA.

Every process that uses our daemon holds a shared lock on a file as long as it lives, also one that is killed. A process
beside the daemon waits for the lock to be free, and then ends the daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from mcrnn.errors import first_line

CONTROL = "nvidia-cuda-mps-control"
"""Program that starts the daemon, and by which it is asked and ended."""
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
SECONDS_TO_ANSWER = 30.0
"""Time that the program gets for an answer."""
SECONDS_TO_CHECK = 120.0
"""Time that a process gets to make a context of CUDA by way of the daemon."""
SECONDS_WITHOUT_USERS = 10.0
"""Time after which the daemon is ended if no process uses it: between two trials there may be none for a moment."""
UNUSABLE = "unusable"
"""File that says why the daemon of this folder could not be used, so that not each trial tries it again."""
SECONDS_UNUSABLE = 3600.0
"""Time for which that is believed."""
CHECK = """
import ctypes, sys
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError:
    sys.exit(0)
device, context = ctypes.c_int(), ctypes.c_void_p()
for result in (
    lambda: cuda.cuInit(0),
    lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
    lambda: cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
):
    if code := result():
        sys.exit(f"CUDA error {code}")
"""
"""Program that makes a context of CUDA, as each process does that computes on a GPU. Where there is no driver, no
process can, with or without the service."""

_held: list[IO[str]] = []
"""The lock that this process holds as a user of our daemon."""


def default_folder() -> Path:
    """Return the folder of our daemon on this machine, one for each user, because a daemon serves one user only."""
    return Path(tempfile.gettempdir()) / f"mcrnn-mps-{os.getuid()}"


def join(folder: Path | None = None) -> str:
    """Let this process, which must not have initialised CUDA yet, compute by way of the multi-process service.

    The service is started if no daemon runs. If it cannot be used, the process computes without it.

    Args:
        folder: folder of our daemon; by default `default_folder`.

    Returns:
        Why the service cannot be used; empty where it is.
    """
    if _held or _answers(os.environ):
        return ""  # a daemon that others have started is used as it is
    folder = folder or default_folder()
    if shutil.which(CONTROL) is None:
        return f"{CONTROL} is not installed"
    try:
        lock = _join(folder)
    except (OSError, subprocess.SubprocessError, Timeout) as error:
        return first_line(error)
    except RuntimeError as error:
        return str(error)
    _held.append(lock)
    os.environ[PIPES] = str(folder / "pipe")
    return ""


def leave() -> None:
    """Let this process be a user of our daemon no longer. CUDA must not have been initialised meanwhile."""
    while _held:
        _held.pop().close()
        os.environ.pop(PIPES, None)


def check() -> str:
    """Return why the multi-process service cannot be used on this machine, empty where it can; it is started for it."""
    was_member = bool(_held)
    problem = join()
    if not was_member:
        leave()
    return problem


def _join(folder: Path) -> IO[str]:
    """Return the lock of a user of the daemon in a folder, which is started if it does not run.

    Raises:
        RuntimeError: it cannot be used; the message says why.
        OSError, SubprocessError, Timeout: it cannot be started.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"'{folder}' belongs to another user")
    with FileLock(folder / "start.lock", timeout=4 * SECONDS_TO_ANSWER):
        unusable = folder / UNUSABLE
        if unusable.exists() and time.time() - unusable.stat().st_mtime < SECONDS_UNUSABLE:
            raise RuntimeError(unusable.read_text())
        lock = (folder / "users.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits for a daemon that is being ended
        environment = _environment(folder)
        if _answers(environment):
            return lock
        for name in (PIPES, LOGS):
            Path(environment[name]).mkdir(exist_ok=True)
        _run([CONTROL, "-d"], environment)
        # It ends the daemon once the lock is free, so also where this process is killed before the check has ended.
        _run([sys.executable, "-m", __spec__.name, str(folder), str(SECONDS_WITHOUT_USERS)], os.environ.copy())
        try:
            _check_use(environment)
        except RuntimeError as error:
            with contextlib.suppress(OSError, subprocess.SubprocessError, RuntimeError):
                _run([CONTROL], environment, "quit\n")
            unusable.write_text(f"a process cannot use it: {error}")
            raise RuntimeError(unusable.read_text()) from None
        unusable.unlink(missing_ok=True)
        return lock


def _check_use(environment: dict[str, str]) -> None:
    """Try whether a process can compute by way of a daemon.

    Raises:
        RuntimeError: it cannot; the message says why.
    """
    if not _answers(environment):
        raise RuntimeError(f"{CONTROL} -d has started no daemon")
    try:
        checked = subprocess.run(
            [sys.executable, "-c", CHECK],
            env=os.environ | {PIPES: environment[PIPES]},
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_CHECK,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it has made no context of CUDA within {SECONDS_TO_CHECK:g} s") from None
    if checked.returncode:
        raise RuntimeError(checked.stderr.strip())


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of our daemon. It serves all GPUs, of which Ray gives each process its own."""
    ours = {PIPES: str(folder / "pipe"), LOGS: str(folder / "log")}
    return {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | ours


def _answers(environment: dict[str, str] | os._Environ[str]) -> bool:
    """Return whether a daemon runs whose pipes are where an environment says, by default in /tmp/nvidia-mps."""
    try:
        _run([CONTROL], dict(environment), "get_server_list\n")
    except (OSError, subprocess.SubprocessError, RuntimeError):
        return False
    return True


def _run(command: list[str], environment: dict[str, str], said: str = "") -> None:
    """Run a program to its end.

    Raises:
        RuntimeError: it has failed; the message is what it has said.
        OSError, SubprocessError: it cannot be run, or does not end.
    """
    ran = subprocess.run(
        command,
        env=environment,
        input=said,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=SECONDS_TO_ANSWER,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} has failed with code {ran.returncode}")


def end_after_last_user(folder: Path, patience: float) -> None:
    """Wait until no process uses the daemon of a folder, and end it.

    Args:
        folder: the folder of the daemon.
        patience: seconds for which there must have been no user.
    """
    with (folder / "users.lock").open("w") as lock:
        while True:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(patience)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            break  # a process that comes now waits for the lock, and then starts the daemon anew
        _run([CONTROL], _environment(folder), "quit\n")


if __name__ == "__main__":
    # Ray ends the children of a worker together with it, so this process is to be no child of one.
    if os.fork() == 0:
        os.setsid()
        end_after_last_user(Path(sys.argv[1]), float(sys.argv[2]))
