"""Commands as processes of their own that need not import PyTorch, Ray and MLflow anew.

A server process imports what the commands need, starts no thread and connects to nothing. For each command it forks:
the child takes the environment, the folder and the output of its caller and runs `python -m MODULE ARGUMENTS...` from
there on. It has a process id, is killed and waited for as any other process. Run as a program, this module is that
server:

    python -m tests.support.fork_server SOCKET OWNER

It ends with the process OWNER, and so do its children and the other servers of the session.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

LIBRARIES = (
    "torch",
    "torch._dynamo",  # The first step of a training imports it.
    "torch._inductor.standalone_compile",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "optuna",
    "xarray",
    "netCDF4",
    "matplotlib.pyplot",
    "boto3",
    "s3fs",
    "pyarrow.dataset",
)
"""These take long to import. Ray is not among them, for it reads its settings from the environment on import."""
PACKAGES = ("mcrnn", "data_prep")
"""Their modules are imported too, but for those that need Ray and for the commands, which run as `__main__`."""


class Server:
    """Forks a child for each request and tells its caller how it ended."""

    def __init__(self, address: str, owner: int) -> None:
        self.running: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()
        self.owner = os.pidfd_open(owner)
        self.woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.wake = wake
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(address + ".new")
        self.listening.listen(64)
        os.rename(address + ".new", address)  # Callers see it once it listens.
        for source in (self.owner, self.woken, self.listening):
            self.selector.register(source, selectors.EVENT_READ)

    def serve(self) -> Callable[[], None] | None:
        """Serve until the owner ends; in a child, return what the child is to do."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listening:
                    if (child := self._fork()) is not None:
                        return child
                elif key.fileobj == self.woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.woken, 4096)
                    self._reap()
                elif key.fileobj == self.owner:
                    for pid in self.running:
                        os.kill(pid, signal.SIGKILL)
                    return None
                elif self.running.get(key.data) is key.fileobj:
                    # Whoever asked for the child has gone.
                    self.selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _fork(self) -> Callable[[], None] | None:
        connection, _ = self.listening.accept()
        try:
            request, descriptors = receive(connection)
        except (OSError, ValueError):
            # The caller was killed while it asked.
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._close_all()
            connection.close()
            return lambda: run(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self.running[pid] = connection
        self.selector.register(connection, selectors.EVENT_READ, pid)
        with contextlib.suppress(OSError):
            connection.sendall(pid.to_bytes(8, "little"))
        return None

    def _close_all(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        self.listening.close()
        for connection in self.running.values():
            connection.close()
        for descriptor in (self.owner, self.woken, self.wake):
            os.close(descriptor)

    def _reap(self) -> None:
        for pid in list(self.running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with self.running.pop(pid) as connection, contextlib.suppress(OSError):
                    with contextlib.suppress(KeyError):
                        self.selector.unregister(connection)
                    connection.sendall((os.waitstatus_to_exitcode(status) & 0xFFFFFFFF).to_bytes(8, "little"))


def send(connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
    """Send a request, and the open files that go with it."""
    content = json.dumps(request).encode()
    socket.send_fds(connection, [len(content).to_bytes(8, "little")], descriptors)
    connection.sendall(content)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive what `send` sent."""
    size, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    missing, content = int.from_bytes(size, "little"), b""
    while len(content) < missing:
        more = connection.recv(missing - len(content))
        if not more:
            raise ConnectionError("the request is not whole")
        content += more
    return json.loads(content), descriptors


at_exit: list[tuple[Any, Any, Any]] = []
"""The libraries want this to be done at the end of a process."""
set_by_libraries: dict[str, str] = {}
"""Environment variables that the libraries have set on import."""


def launcher(address: Path) -> Path:
    """Return the path of a program in place of Python, with which Ray starts its workers as children of the server."""
    return address.with_name("python")


def write_launcher(address: Path) -> None:
    """Write that program."""
    script = Path(__file__).with_name("worker_launcher.py")
    file = launcher(address)
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {script} {address} {sys.executable} "$@"\n')
    file.chmod(0o755)


def import_all() -> None:
    """Import what the commands need, and note what that leaves behind in the process."""
    before = dict(os.environ)
    register = atexit.register

    def note(function: Any, *arguments: Any, **options: Any) -> Any:
        at_exit.append((function, arguments, options))
        return function

    atexit.register = cast("Any", note)
    gc.set_threshold(10_000)
    for name in LIBRARIES:
        importlib.import_module(name)
    sys.modules["ray"] = None  # type: ignore[assignment]
    for package in PACKAGES:
        folder = Path(importlib.import_module(package).__file__ or "").parent
        for file in sorted(folder.rglob("*.py")):
            if "__main__" not in file.read_text():
                parts = file.relative_to(folder.parent).with_suffix("").parts
                with contextlib.suppress(ImportError):  # Some modules need Ray.
                    importlib.import_module(".".join(part for part in parts if part != "__init__"))
    del sys.modules["ray"]
    atexit.register = register
    set_by_libraries.update({name: value for name, value in os.environ.items() if before.get(name) != value})
    gc.freeze()


def run(request: dict[str, Any], descriptors: list[int]) -> None:
    """Become the process that was asked for."""
    os.setsid()  # Ray kills the process groups of its workers. The server must not be in them.
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(set_by_libraries | request["environment"])
    os.chdir(request["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules["numpy"].random.seed()
    sys.executable = request.get("python", sys.executable)
    register = atexit.register

    def first(function: Any, *arguments: Any, **options: Any) -> Any:
        # The command registers its own function first, as it does where it imports the libraries later.
        atexit.register = register
        register(function, *arguments, **options)
        for each, its_arguments, its_options in at_exit:
            register(each, *its_arguments, **its_options)
        return function

    atexit.register = cast("Any", first)
    first_word, *words = request["command"]
    code = 1
    try:
        if first_word == "-c":
            sys.path[0] = ""
            sys.argv = ["-c", *words[1:]]
            exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
        elif first_word == "-m":
            sys.path[0] = os.getcwd()
            sys.argv = ["-m", *words[1:]]
            sys.orig_argv = [sys.executable, *request["command"]]
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(first_word).parent)
            sys.argv = [first_word, *words]
            runpy.run_path(first_word, run_name="__main__")
        code = 0
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Import all, then serve."""
    address, owner = Path(sys.argv[1]), int(sys.argv[2])
    write_launcher(address)
    import_all()
    child = Server(str(address), owner).serve()
    if child is not None:
        child()
    # The owner was killed, or it would have stopped this server and the others itself.
    from tests.support.shared import stop_all

    stop_all(address.parent)


if __name__ == "__main__":
    main()
