"""A process that starts drivers of searches: `python -m tests.support.driver_racer CLOCK`.

The wall clock of the drivers is CLOCK seconds ahead. For each line `MOMENT ARGUMENTS...` of its input it runs
`python -m mcrnn.tune ARGUMENTS...` at a moment of the monotonic clock, in a forked process, in which the imports are
done. It answers with one line of JSON: the exit code and what the driver wrote. After a line `end`, the driver is
killed as soon as it has said what it is going to do. Who works renews its lease all the time, so that one that cannot
see its process need not wait long to be refused.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time

import mcrnn.search.driver  # noqa: F401  what drivers import
from mcrnn.storage import lease
from mcrnn.tune import main, tune
from tests.support.fork_server import LIBRARIES

WORKS = b" trials to run"
"""What a driver says that has the lease and has opened its study."""


def drive(arguments: list[str], errors: int) -> None:
    """Become a driver."""
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    sys.argv = ["mcrnn.tune", *arguments]
    code = 1
    try:
        main(tune)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end_of(child: int, errors: int) -> int:
    """Wait for the end of a driver, or end it when a line `end` comes and it works; return its exit code."""
    is_to_end = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if not is_to_end:
            is_to_end = bool(select.select([sys.stdin], [], [], 0.05)[0]) and sys.stdin.readline() == "end\n"
        elif WORKS in os.pread(errors, 1 << 20, 0):  # the file's position is the driver's too
            os.kill(child, signal.SIGKILL)
            is_to_end = False
        else:
            time.sleep(0.05)


def serve(clock: float) -> None:
    """Start drivers until the input ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    lease.RENEWAL, lease.POLL = 0.2, 0.1
    right_time = time.time
    time.time = lambda: right_time() + clock  # nothing else of the command is changed
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        moment, *arguments = line.split()
        with tempfile.TemporaryFile() as errors:
            time.sleep(max(0.0, float(moment) - time.monotonic()))
            child = os.fork()
            if child == 0:
                drive(arguments, errors.fileno())
            code = end_of(child, errors.fileno())
            errors.seek(0)
            said = errors.read().decode(errors="replace")
        print(json.dumps({"code": code, "said": said}), flush=True)


if __name__ == "__main__":
    serve(float(sys.argv[1]))
