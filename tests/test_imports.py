"""What importing a package loads: a registered model installs neither Ray nor a store, and --help must be quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mcrnn

PACKAGES = Path(mcrnn.__file__).parent
MODELS = sorted(f"mcrnn.models.{path.stem}" for path in (PACKAGES / "models").glob("[a-z]*.py"))
TRAINING = sorted(f"mcrnn.training.{path.stem}" for path in (PACKAGES / "training").glob("[a-z]*.py"))
WITHOUT_TRITON = [module for module in MODELS if not module.endswith("_triton")]

SCRIPT = """
import importlib, json, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages that importing these modules loads in a fresh process."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("modules", "excluded"),
    [
        (["mcrnn.models"], {"ray", "mlflow", "optuna", "zarr", "s3fs", "xarray"}),
        (WITHOUT_TRITON, {"ray", "mlflow", "optuna", "zarr", "s3fs", "xarray"}),
        (TRAINING, {"ray", "mlflow", "optuna"}),
        (["mcrnn.evaluation.metrics"], {"ray", "mlflow", "optuna"}),
        (["data_prep.solver"], {"ray", "mlflow", "optuna"}),
        (
            ["mcrnn.status", "mcrnn.stop", "mcrnn.search.overview", "mcrnn.search.overview_tables"],
            {"ray", "optuna", "mlflow", "torch", "numpy", "pydantic", "sqlalchemy", "s3fs", "boto3"},
        ),
        (["mcrnn.config", "mcrnn.schema"], {"ray", "mlflow", "optuna", "zarr", "s3fs", "torch", "numpy"}),
    ],
    ids=["models", "modules-of-models", "modules-of-training", "metrics", "solver", "status", "configuration"],
)
def test_import_does_not_load(modules: list[str], excluded: set[str]) -> None:
    assert not loaded_by(*modules) & excluded


def test_what_is_imported_is_seen() -> None:
    assert {"mcrnn", "torch"} <= loaded_by("mcrnn.models")
