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


WITHOUT_RAY = [*TRAINING, "mcrnn.evaluation.metrics", "data_prep.solver"]


@pytest.mark.parametrize(
    ("modules", "included", "excluded"),
    [
        (WITHOUT_TRITON, {"mcrnn", "torch"}, {"ray", "mlflow", "optuna", "zarr", "s3fs", "xarray"}),
        (WITHOUT_RAY, {"mcrnn", "data_prep", "torch"}, {"ray", "mlflow", "optuna"}),
        (
            ["mcrnn.status", "mcrnn.stop", "mcrnn.search.overview", "mcrnn.search.overview_tables"],
            {"mcrnn"},
            {"ray", "optuna", "mlflow", "torch", "numpy", "pydantic", "sqlalchemy", "s3fs", "boto3"},
        ),
        (
            ["mcrnn.config", "mcrnn.schema"],
            {"mcrnn"},
            {"ray", "mlflow", "optuna", "zarr", "s3fs", "torch", "numpy"},
        ),
        (["data_prep.sources", "data_prep.source_identity"], {"data_prep", "xarray"}, {"requests", "h5py", "pydap"}),
    ],
    ids=["models", "training-metrics-and-solver", "status", "configuration", "sources"],
)
def test_import_loads_what_it_needs_and_not_what_is_slow_or_may_be_missing(
    modules: list[str], included: set[str], excluded: set[str]
) -> None:
    """Modules that may not load the same packages are imported in one process: none of them does where all do not."""
    loaded = loaded_by(*modules)
    assert included <= loaded
    assert not loaded & excluded
