"""Builds on clusters of which one machine has files and credentials of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.shard_records import record_keys
from mcrnn.data.store import FieldStore
from mcrnn.storage.s3 import S3Prefix
from tests.conftest import CommandRunner
from tests.data_prep.test_odd_inputs import DAYS, dataset
from tests.support.processes import Start, wait_for
from tests.support.ray_cluster import TwoNodes
from tests.support.s3_server import S3Server, error

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(900)]

OTHER_MACHINE = "127.0.0.3"
WITHOUT_FOLDER = ("unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
"""Starts a command that sees another folder, an empty one, at a path."""
SPLITS = [word for name, value in DAYS.items() for word in (f"--{name}", value)]


@pytest.fixture
def cluster(ray_folder: Path, s3: S3Server) -> Iterator[TwoNodes]:
    """A head without CPUs and a worker, which see all files, and have the right key for S3."""
    s3.fault = refuse_the_wrong_key
    cluster = TwoNodes(ray_folder, **s3.environment)
    yield cluster
    cluster.stop()


def refuse_the_wrong_key(environ: dict[str, Any]) -> Any:
    if "Credential=wrong/" in environ.get("HTTP_AUTHORIZATION", ""):
        return error("403 Forbidden", "InvalidAccessKeyId")
    return None


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_machine_with_other_files_and_credentials_is_named(
    cluster: TwoNodes, root: Path, command: CommandRunner, start: Start
) -> None:
    sources = root / "sources"
    sources.mkdir()
    prefix = (*WITHOUT_FOLDER, str(sources))
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let this user make mount namespaces")
    dataset().to_netcdf(sources / "z.nc")
    here = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
    here |= {"MCRNN_STORAGE": "s3://lab"}
    other = cluster.add_machine(OTHER_MACHINE, *prefix, AWS_ACCESS_KEY_ID="wrong")

    def assert_names_the_other_machine(code: int, said: str) -> None:
        assert code == 2, said
        (line,) = (line for line in said.splitlines() if line.startswith("error: "))
        assert f"on {OTHER_MACHINE}: no '{sources}/z.nc'" in line
        assert f"on {OTHER_MACHINE}: wrong key for 's3://lab/z.zarr'" in line
        assert "127.0.0.1" not in line.replace(os.environ["AWS_ENDPOINT_URL"], "")
        assert "127.0.0.2" not in line

    how = (f"{sources}/*.nc", "z.zarr", *SPLITS, "--workers", "3")
    refused = command("data_prep.convert", *how, **here)
    assert_names_the_other_machine(refused.returncode, refused.stderr)
    assert S3Prefix("lab").sizes() == {}

    # a machine that joins a cluster without workers, where there was nothing to ask, is asked by its first task
    kill(other)
    cluster.remove_worker()
    waiting = start("data_prep.convert", *how, **here)
    wait_for(lambda: "z.zarr/zarr.json" in S3Prefix("lab").sizes(), waiting, 200)
    cluster.add_machine(OTHER_MACHINE, *prefix, AWS_ACCESS_KEY_ID="wrong")
    _, said = waiting.communicate(300)
    assert_names_the_other_machine(waiting.wait(), said)
    assert record_keys(S3Prefix("lab/z.zarr").sizes()) == []

    kill(cluster.more[-1])
    cluster.add_worker()
    built = command("data_prep.convert", *how, **here)
    assert built.returncode == 0, built.stderr
    FieldStore.open(S3Prefix("lab/z.zarr")).verify()
