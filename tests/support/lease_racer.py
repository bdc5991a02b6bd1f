"""A process that competes for leases: `python -m tests.support.lease_racer FOLDER CLOCK LIFETIME RENEWAL`.

FOLDER is a path or a URL of S3. The wall clock of the process is CLOCK seconds ahead. For each line `KEY MOMENT` of its
input it tries to take the lease KEY at a moment of the monotonic clock, which the processes of a machine share, and
answers `works` or `refused: ...`; for an empty line it releases the lease and answers `ready`.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

from mcrnn.errors import UserError
from mcrnn.storage import lease
from mcrnn.storage.lease import Lease
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.location import Location
from mcrnn.storage.s3 import S3Prefix


def main(folder: str, clock: str, lifetime: str, renewal: str) -> None:
    """Compete until the input ends."""
    right_time = time.time
    time.time = lambda: right_time() + float(clock)
    lease.LIFETIME, lease.RENEWAL, lease.POLL = float(lifetime), float(renewal), 0.02
    lease.has_conditional_writes = functools.cache(lease.has_conditional_writes)
    location: Location = S3Prefix.from_url(folder) if folder.startswith("s3:") else LocalFolder(Path(folder))
    lease.has_conditional_writes(location)
    print("ready", flush=True)
    held: Lease | None = None
    for line in sys.stdin:
        if not line.strip():
            if held is not None:
                held.release()
            held, answer = None, "ready"
        else:
            key, moment = line.split()
            time.sleep(max(0.0, float(moment) - time.monotonic() - 0.002))
            while time.monotonic() < float(moment):
                pass
            competing = Lease(location, key, "search")
            try:
                competing.acquire()
                held, answer = competing, "works"
            except UserError as error:
                answer = f"refused: {error}"
        print(answer, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
