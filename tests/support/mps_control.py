"""A stand-in for nvidia-cuda-mps-control, which needs a GPU: its daemon is a file among the pipes."""

from __future__ import annotations

import os
from pathlib import Path

PROGRAM = """#!/bin/sh
pipes="${CUDA_MPS_PIPE_DIRECTORY:-NOWHERE/pipes}"
if [ "$1" = -d ]; then
    echo "-d pipes=$pipes logs=$CUDA_MPS_LOG_DIRECTORY devices=$CUDA_VISIBLE_DEVICES" >> CALLS
    [ -z "$MPS_STAND_IN_BROKEN" ] || exit 3
    touch "$pipes/daemon"
    exit
fi
read said
echo "$said pipes=$pipes" >> CALLS
[ -e "$pipes/daemon" ] || exit 1
[ "$said" != quit ] || rm "$pipes/daemon"
"""


def install(folder: Path) -> dict[str, str]:
    """Write the program into a folder, with the calls in `folder/calls`; returns the environment that finds it."""
    program = folder / "bin/nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(PROGRAM.replace("CALLS", f"'{folder / 'calls'}'").replace("NOWHERE", str(folder)))
    program.chmod(0o755)
    (folder / "calls").touch()
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
