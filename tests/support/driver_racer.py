"""A process that starts drivers of searches: `python -m tests.support.driver_racer CLOCK`.

The wall clock of the drivers is CLOCK seconds ahead. For each line `MOMENT ARGUMENTS...` of its input it runs
`python -m mcrnn.tune ARGUMENTS...` at a moment of the monotonic clock, in a forked process, in which the imports are
done. It answers with one line of JSON: the exit code and what the driver wrote to stderr. Who works renews its lease
all the time, so that one that cannot see its process need not wait long to be refused.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time

import mcrnn.search.driver  # noqa: F401  what drivers import
from mcrnn.storage import lease
from mcrnn.tune import main, tune
from tests.support.fork_server import LIBRARIES


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


def serve(clock: float) -> None:
    """Start drivers until the input ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    lease.RENEWAL, lease.POLL = 0.2, 0.1
    right_time = time.time
    time.time = lambda: right_time() + clock  # nothing else of the command is changed
    print("ready", flush=True)
    for line in sys.stdin:
        moment, *arguments = line.split()
        with tempfile.TemporaryFile() as errors:
            time.sleep(max(0.0, float(moment) - time.monotonic()))
            child = os.fork()
            if child == 0:
                drive(arguments, errors.fileno())
            _, status = os.waitpid(child, 0)
            errors.seek(0)
            said = errors.read().decode(errors="replace")
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "said": said}), flush=True)


if __name__ == "__main__":
    serve(float(sys.argv[1]))
