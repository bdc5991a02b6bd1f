"""The console command `mcrnn`: it lists every command, starts each as its module does, and completes in a shell."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mcrnn.main import COMMANDS, DATA_COMMANDS
from tests.commands.test_commands import COMMANDS as MODULES
from tests.commands.test_commands import refused
from tests.conftest import CommandRunner

SCRIPT = Path(sys.executable).with_name("mcrnn")
ADDRESSES = {(name,): entry[0] for name, entry in COMMANDS.items()} | {
    ("data", name): entry[0] for name, entry in DATA_COMMANDS.items()
}


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        env=os.environ | {"COLUMNS": "120"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_every_command_quickly_and_without_heavy_imports() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = script("--help", PYTHONPROFILEIMPORTTIME="1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    for name, (_, _, line) in COMMANDS.items():
        assert f"  {name} " in result.stdout
        assert line in result.stdout
    for name, (_, _, line) in DATA_COMMANDS.items():
        assert name in script("data", "--help").stdout
        assert line in script("data", "--help").stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "mcrnn.main" in imported
    assert not imported & {"torch", "ray", "mlflow", "optuna", "numpy", "mcrnn.tune"}
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1.0


def test_every_command_is_in_the_table() -> None:
    assert set(ADDRESSES.values()) == {*MODULES, "mcrnn.schema"}


@pytest.mark.parametrize("names", ADDRESSES, ids=" ".join)
def test_help_is_that_of_the_module(command: CommandRunner, names: tuple[str, ...]) -> None:
    module = ADDRESSES[names]
    expected = command(module, "--help").stdout
    shown = script(*names, "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == expected.replace(f"python -m {module}", f"mcrnn {' '.join(names)}").split()
    assert command("mcrnn", *names, "--help").stdout.startswith(f"Usage: python -m mcrnn {' '.join(names)}")


def test_mistake_ends_as_in_the_module(command: CommandRunner, root: Path) -> None:
    (root / "file.yaml").write_text("name: x\nmodel: {hiden_size: 3}\nspace: {}\n")
    result = script("tune", str(root / "file.yaml"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr == command("mcrnn.tune", str(root / "file.yaml")).stderr
    line = refused(command, "mcrnn.tune", "search_spaces/demmo.yaml")
    assert refused(command, "mcrnn", "tune", "search_spaces/demmo.yaml") == line


def test_unknown_command_is_refused_with_the_nearest() -> None:
    result = script("tun")
    assert result.returncode == 2
    assert "Did you mean 'tune'?" in result.stderr


def test_completion_script_is_valid_and_completes_commands_and_options() -> None:
    shown = script(_MCRNN_COMPLETE="source_bash")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "complete_bash" in shown.stdout
    checked = subprocess.run(["bash", "-n"], input=shown.stdout, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")

    def completed(*words: str) -> list[str]:
        last = str(len(words) - 1)
        result = script(_MCRNN_COMPLETE="complete_bash", COMP_WORDS="\n".join(words), COMP_CWORD=last)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.split()

    assert completed("mcrnn", "t") == ["tune", "train"]
    assert completed("mcrnn", "data", "") == list(DATA_COMMANDS)
    assert completed("mcrnn", "tune", "--pre") == ["--preview"]
