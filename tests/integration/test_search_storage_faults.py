"""What happens to searches whose study is on object storage or in a database when their driver is killed."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from mcrnn.errors import UserError
from mcrnn.storage.parts import UploadedParts
from mcrnn.storage.s3 import S3Prefix
from tests.conftest import CommandRunner
from tests.integration.test_search_faults import TRIALS_OF_SOAK, kept, undisturbed
from tests.support.postgres import PostgresServer
from tests.support.processes import Start, wait_for
from tests.support.s3_server import S3Server
from tests.support.searches import write

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


def kill_driver_on_s3(
    start: Start, command: CommandRunner, root: Path, s3: S3Server, name: str, seed: int, trials: int
) -> list[dict[str, Any]]:
    """Kill a driver whose search lives on S3, finish it with the same command; returns what was found."""
    rng = random.Random(seed)
    arguments = (write(root, name, search={"trials": trials}), "--storage", "s3://lab/here")
    client = s3.client()

    def told() -> int:
        parts = UploadedParts(root / f"{name}.journal", S3Prefix(f"lab/here/searches/{name}/journal"))
        try:
            parts.find()
            parts.download()
        except UserError:  # the driver has just merged the parts that were found
            return 0
        return parts.file.read_bytes().count(b'"result"')  # of a trial that is paused or has ended

    if seed == 0:
        for file in (root / "data/tiny.zarr").rglob("*"):
            if file.is_file():
                client.put_object(Bucket="lab", Key=f"here/{file.relative_to(root)}", Body=file.read_bytes())
    process = start("mcrnn.tune", *arguments)
    after = rng.randrange(1, trials - 4)
    wait_for(lambda: told() >= after, process)
    time.sleep(rng.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result = command("mcrnn.tune", *arguments)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    summary = client.get_object(Bucket="lab", Key=f"here/searches/{name}/summary.json")["Body"].read()
    assert not (root / "searches" / name).exists()
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="lab", Prefix=f"here/searches/{name}/")["Contents"]]
    assert not [key for key in keys if "/checkpoints/" in key]
    assert len({key.split("/model/")[0] for key in keys if "/model/" in key}) == 3
    return kept(json.loads(summary))


@pytest.mark.soak
def test_search_on_s3_survives_the_kill_of_its_driver(
    command: CommandRunner, root: Path, start: Start, ray_folder: Path, s3: S3Server
) -> None:
    found = kill_driver_on_s3(start, command, root, s3, "s3", 0, 6)
    assert [row["trial"] for row in found] == list(range(6))


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_many_kills_on_s3(command: CommandRunner, root: Path, start: Start, ray_folder: Path, s3: S3Server) -> None:
    expected = undisturbed(command, root, TRIALS_OF_SOAK)
    for seed in range(3):
        assert kill_driver_on_s3(start, command, root, s3, f"s3-{seed}", seed, TRIALS_OF_SOAK) == expected


def memory(pid: int) -> bytes:
    """What a process has written into its memory, its environment with it."""
    found = [Path(f"/proc/{pid}/environ").read_bytes()]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as content:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            start, end = (int(number, 16) for number in span.split("-"))
            if rights.startswith("rw") and end - start < 2**28:
                with contextlib.suppress(OSError):
                    content.seek(start)
                    found.append(content.read(end - start))
    return b"".join(found)


@pytest.mark.soak
def test_study_in_postgresql_survives_the_kill_of_the_driver_and_its_password_is_nowhere(
    command: CommandRunner, root: Path, start: Start, ray_folder: Path, postgres: PostgresServer
) -> None:
    file = write(root, "p", search={"trials": 5, "storage": postgres.url})

    def states() -> list[str]:
        try:  # one short query, for the search does not wait for this test
            with psycopg.connect(postgres.url) as connection:
                return [str(state) for (state,) in connection.execute("SELECT state FROM trials").fetchall()]
        except psycopg.errors.UndefinedTable:
            return []  # it has not begun

    process = start("mcrnn.tune", file)
    wait_for(lambda: sum(state in ("COMPLETE", "PRUNED") for state in states()) >= 2, process)
    others = psutil.Process(process.pid).children(recursive=True)
    assert any(each.name().startswith("ray::") for each in others)
    for each in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            assert "secret" not in " ".join(each.cmdline())
            assert b"mcrnn:secret" not in memory(each.pid), each
    process.kill()
    process.communicate()
    result = command("mcrnn.tune", file)
    assert result.returncode == 0, result.stderr
    assert len(states()) == 5
    summary = json.loads((root / "searches/p/summary.json").read_text())
    assert {row["end"] for row in summary["trials"]} <= {"finished", "stopped"}
    assert len(summary["trials"]) == 5
    for path in root.rglob("*"):
        if path.is_file() and path.name != file:
            assert b"mcrnn:secret" not in path.read_bytes(), path
    with psycopg.connect(postgres.url) as connection:
        for kind in ("study", "trial"):
            for name in ("user", "system"):
                rows = connection.execute(f"SELECT value_json FROM {kind}_{name}_attributes").fetchall()
                assert "secret" not in str(rows)
    postgres.stop()
    away = command("mcrnn.tune", file, "--set", "search.trials=6")
    assert away.returncode == 2
    assert "search.storage: the database cannot be used" in away.stderr
    assert "secret" not in away.stderr
