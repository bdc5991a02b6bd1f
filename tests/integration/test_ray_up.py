"""`ray up` with cluster/local.yaml over ssh, a job, `ray down`.

In namespaces of its own, where the `ray stop` of both reaches nobody else's Ray.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.support.lab import write

pytestmark = [pytest.mark.integration, pytest.mark.soak]

NEEDED = ("sshd", "ssh", "ssh-keygen", "rsync", "unshare")


def missing() -> str | None:
    """Why it cannot run here."""
    for program in NEEDED:
        if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
            return f"needs {program} (Debian: apt-get install openssh-server rsync)"
    allowed = subprocess.run(["unshare", "-pfmn", "--mount-proc", "true"], capture_output=True, check=False)
    return None if allowed.returncode == 0 else "needs the right to make namespaces"


@pytest.mark.timeout(600)
def test_ray_up_job_and_ray_down_with_local_yaml(root: Path) -> None:
    if (why := missing()) is not None:
        pytest.skip(why)
    laptop = root / "laptop"
    shipped = root / "shipped"
    for folder in (laptop / ".ray", laptop / ".ssh", root / "machine", shipped):
        folder.mkdir(parents=True)
    (laptop / ".ray/auth_token").write_text("0123456789abcdef" * 2)
    (laptop / ".mcrnn.env").write_text(
        f"MCRNN_STORAGE={root}\nMCRNN_SHARED_STORAGE=1\nMCRNN_MLFLOW_DATABASE=sqlite:///{root}/server.db\n"
        "MLFLOW_TRACKING_USERNAME=lab\nMLFLOW_TRACKING_PASSWORD=correcthorsebattery\n"
    )
    write(shipped, "up", search={"trials": 2})
    inside = Path(__file__).with_name("ray_up_inside.py")
    done = subprocess.run(
        [
            "unshare",
            "-pfmn",
            "--mount-proc",
            sys.executable,
            str(inside),
            str(root),
        ],
        env=os.environ | {"HOME": str(laptop)},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "[2/2] trial" in said
    assert "processes of Ray left: 0" in said
    assert (root / "searches/up/summary.json").exists()
    assert (root / "server.db").exists()
    assert (root / "machine/mcrnn/cluster/local.yaml").exists()
    assert not (root / "machine/mcrnn/.git").exists()
