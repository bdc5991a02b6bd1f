"""The commands as a user runs them: how mistakes end, what help says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import CommandRunner
from tests.support.s3_server import S3Server

pytestmark = pytest.mark.usefixtures("database")

COMMANDS = (
    "data_prep.navier_stokes",
    "data_prep.convert",
    "data_prep.netcdf",
    "data_prep.append",
    "data_prep.inspect",
    "mcrnn.tune",
    "mcrnn.train",
    "mcrnn.evaluate",
    "mcrnn.forecast",
    "mcrnn.serve",
    "mcrnn.status",
    "mcrnn.report",
    "mcrnn.stop",
    "mcrnn.promote",
    "mcrnn.leaderboard",
    "mcrnn.reproduce",
    "mcrnn.ui",
    "mcrnn.convert",
)

CONFIGURATION = {
    "name": "small",
    "data": {"store": "data/tiny.zarr", "coarsen": 2, "sequence_length": 6},
    "model": {"architecture": "minconvgru", "hidden_size": 4, "layers": 1},
    "train": {"epochs": 2, "teacher_forcing_steps": 4},
    "validation": {"warm_up": 4, "horizon": 5},
}


def refused(command: CommandRunner, *arguments: str) -> str:
    """Run a command that must end with exit code 2 and one line on stderr; returns the line."""
    result = command(*arguments)
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def write(root: Path, **changes: object) -> str:
    (root / "file.yaml").write_text(yaml.safe_dump(CONFIGURATION | changes))
    return "file.yaml"


@pytest.mark.parametrize("module", COMMANDS)
def test_help_names_every_option_with_its_meaning(interpreter: CommandRunner, module: str) -> None:
    result = interpreter(module, "--help")
    assert result.returncode == 0
    assert "--storage" in result.stdout
    assert "Usage: python -m " + module in result.stdout


@pytest.mark.parametrize("module", COMMANDS)
def test_unknown_option_is_refused(command: CommandRunner, module: str) -> None:
    result = command(module, "x", "--nonsense")
    assert result.returncode == 2
    assert "--nonsense" in result.stderr
    assert "Traceback" not in result.stderr


def test_wrong_file_name(command: CommandRunner) -> None:
    assert "did you mean 'search_spaces/demo.yaml'?" in refused(command, "mcrnn.tune", "search_spaces/demmo.yaml")
    assert "there is no file 'nothing'" in refused(command, "mcrnn.train", "nothing")


def test_unknown_key(command: CommandRunner, root: Path) -> None:
    file = write(root, model={"architecture": "convgru", "hiden_size": 3})
    assert "model.hiden_size: unknown key; did you mean 'hidden_size'?" in refused(command, "mcrnn.train", file)


def test_file_that_is_no_yaml(command: CommandRunner, root: Path) -> None:
    (root / "file.yaml").write_text("name: [unclosed\n")
    assert "not valid YAML" in refused(command, "mcrnn.tune", "file.yaml")


def test_missing_and_unfinished_store(command: CommandRunner, root: Path) -> None:
    file = write(root, data={"store": "data/other.zarr"})
    assert "there is no store" in refused(command, "mcrnn.train", file)
    attributes = root / "data" / "tiny.zarr" / "zarr.json"
    content = json.loads(attributes.read_text())
    content["attributes"]["status"] = "building"
    attributes.write_text(json.dumps(content))
    assert "is unfinished" in refused(command, "mcrnn.train", write(root))


def test_unknown_model(command: CommandRunner) -> None:
    assert "there is no model 'nothing'" in refused(command, "mcrnn.evaluate", "models:/nothing@champion")
    assert "there is no model 'nowhere'" in refused(command, "mcrnn.evaluate", "nowhere")
    assert "there is no model" in refused(command, "mcrnn.evaluate", "runs:/0123456789abcdef0123456789abcdef/model")
    assert "names no version" in refused(command, "mcrnn.evaluate", "models:/nothing")


def test_samples_too_short(command: CommandRunner, root: Path) -> None:
    file = write(root, validation={"warm_up": 10, "horizon": 20})
    assert "needs samples of 31 frames, the store has 14" in refused(command, "mcrnn.train", file)


def test_store_on_object_storage_is_made_inspected_and_trained_on(
    command: CommandRunner, root: Path, s3: S3Server
) -> None:
    small = ("--train", "4", "--val", "2", "--test", "2", "--frames", "12", "--resolution", "8", "--workers", "1")
    made = command("data_prep.navier_stokes", "s3://lab/new.zarr", *small)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith("s3://lab/new.zarr: 4 + 2 + 2 samples")
    seen = command("data_prep.inspect", "new.zarr", "--verify", "--storage", "s3://lab")
    assert (seen.returncode, seen.stderr) == (0, "")
    assert "verified: all" in seen.stdout
    file = write(root, data={"store": "s3://lab/new.zarr", "sequence_length": 6})
    trained = command("mcrnn.train", file)
    assert "minconvgru: 437 parameters; a frame costs " in trained.stdout
    assert (trained.returncode, trained.stderr) == (0, "")
    # larger than its memory: the same numbers, read batch by batch
    again = command("mcrnn.train", file, "--new", MCRNN_MEMORY="0.0000001")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines()[2].split(",")[:3] == trained.stdout.splitlines()[2].split(",")[:3]
    assert "there is no bucket 'nowhere'" in refused(command, "data_prep.inspect", "s3://nowhere/x.zarr")


def test_inspect_describes_an_unfinished_store(command: CommandRunner, root: Path) -> None:
    store = root / "data" / "tiny.zarr"
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"] |= {"status": "building", "shards": 3}
    (store / "zarr.json").write_text(json.dumps(document))
    (store / ".build").mkdir()
    (store / ".build" / "train-0000000000.json").write_text("{}")
    seen = command("data_prep.inspect", "data/tiny.zarr")
    assert "unfinished, 1 of 3 objects are done" in seen.stdout
    assert "is unfinished" in refused(command, "data_prep.inspect", "data/tiny.zarr", "--verify")


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_animation_of_a_sample(command: CommandRunner, root: Path, ending: str) -> None:
    made = command("data_prep.inspect", "data/tiny.zarr", "--animate", f"a.{ending}", "--split", "val", "--sample", "2")
    assert made.returncode == 0, made.stderr
    content = (root / f"a.{ending}").read_bytes()
    assert content[4:8] == b"ftyp" if ending == "mp4" else content[:6] == b"GIF89a"
    assert len(content) > 2_000


def test_animation_that_cannot_be_made(command: CommandRunner) -> None:
    inspect = ("data_prep.inspect", "data/tiny.zarr", "--animate")
    assert "written as .mp4 or .gif" in refused(command, *inspect, "a.avi")
    assert "there is no folder 'nowhere'" in refused(command, *inspect, "nowhere/a.gif")
    assert "has samples 0 to 5, not 9" in refused(command, *inspect, "a.gif", "--sample", "9")
    assert "no split 'trian'" in refused(command, *inspect, "a.gif", "--split", "trian")


def test_storage_that_cannot_be_used(command: CommandRunner, root: Path) -> None:
    (root / "a_file").write_text("")
    line = refused(command, "data_prep.navier_stokes", "x.zarr", "--storage", "a_file")
    assert "cannot use 'a_file' as storage" in line


def test_wrong_generator_parameters(command: CommandRunner) -> None:
    assert "--resolution must be even" in refused(command, "data_prep.navier_stokes", "x.zarr", "--resolution", "15")
    assert "--viscosity must be above 0" in refused(command, "data_prep.navier_stokes", "x.zarr", "--viscosity", "0")
    assert "--alpha must be above 1" in refused(command, "data_prep.navier_stokes", "x.zarr", "--alpha", "1")
    coarse = ("--compute-resolution", "80")
    assert "--compute-resolution 80 is above" in refused(command, "data_prep.navier_stokes", "x.zarr", *coarse)
    assert "--device tpu cannot be used" in refused(command, "data_prep.navier_stokes", "x.zarr", "--device", "tpu")


def test_generator_makes_reuses_and_refuses(command: CommandRunner, shared_ray: str) -> None:
    small = ("--train", "2", "--val", "1", "--test", "1", "--frames", "2", "--resolution", "8")
    made = command("data_prep.navier_stokes", "data/new.zarr", *small)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == "data/new.zarr: 2 + 1 + 1 samples of 2 frames, 8 x 8"
    again = command("data_prep.navier_stokes", "data/new.zarr", *small)
    assert "complete already" in again.stdout
    assert "seed is 0, not 1" in refused(command, "data_prep.navier_stokes", "data/new.zarr", *small, "--seed", "1")


def test_train_continues_finishes_and_starts_beside(command: CommandRunner, root: Path) -> None:
    file = write(root)
    first = command("mcrnn.train", file)
    assert first.returncode == 0, first.stderr
    assert "epoch 2/2" in first.stdout
    again = command("mcrnn.train", file)
    assert again.returncode == 0
    assert "epoch" not in again.stdout
    assert "the model is in runs/small/model" in again.stdout
    assert "epoch 2/2" in command("mcrnn.train", file, "--new").stdout
    assert (root / "runs" / "small-2" / "model" / "config.json").exists()

    other = write(root, train={"epochs": 2, "teacher_forcing_steps": 3})
    line = refused(command, "mcrnn.train", other)
    assert "train.teacher_forcing_steps is 3, was 4" in line
    assert "--new" in line

    evaluated = command("mcrnn.evaluate", "runs/small", "runs/small-2")
    assert evaluated.returncode == 0, evaluated.stderr
    both = json.loads((root / "reports/small+small-2/metrics.json").read_text())
    assert [metrics["model"] for metrics in both] == ["runs/small", "runs/small-2"]
    metrics = both[0]
    assert metrics["windows"] == 4
    assert len(metrics["rmse_by_lead_time"]) == 6
    assert metrics["baselines"]["persistence"]["rmse_closed_loop"] > 0

    store = root / "data" / "tiny.zarr"
    assert "damaged" in refused_after_damage(command, store)


def refused_after_damage(command: CommandRunner, store: Path) -> str:
    (store / "manifest.json").unlink()
    return refused(command, "mcrnn.evaluate", "runs/small")
