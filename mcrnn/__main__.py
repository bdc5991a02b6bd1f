"""`python -m mcrnn`: the same as the console command `mcrnn`."""

from __future__ import annotations

from mcrnn.main import main

if __name__ == "__main__":
    main()
