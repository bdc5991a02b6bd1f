"""The notebooks of examples/ as pages: executed on the search that `examples/prepare.py` has made.

They are committed without outputs. An executed copy is kept in build/docs, and used again as long as neither the
notebook nor the search has changed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

STORAGE = Path("build/docs/storage")
"""the storage root of the search that the notebooks read, below the repository"""
EXECUTED = Path("build/docs/notebooks")
SECONDS_A_CELL = 120


def pages(root: Path) -> dict[str, tuple[str, dict[str, bytes]]]:
    """Text and pictures of each page, by the name of its notebook.

    Raises:
        FileNotFoundError: there are no notebooks, or the search that they read has not been made.
        ValueError: a notebook has been committed with outputs, or has none when it was executed.
    """
    notebooks = sorted((root / "examples").glob("*.ipynb"))
    if not notebooks:
        raise FileNotFoundError("there are no notebooks in examples/")
    summaries = sorted((root / STORAGE / "searches").glob("*/summary.json"))
    if not summaries:
        raise FileNotFoundError(f"there is no search in {STORAGE}: run python examples/prepare.py, as `make docs` does")
    changed = max(path.stat().st_mtime for path in (*summaries, Path(__file__)))
    return {path.stem: _page(root, path, changed) for path in notebooks}


def _page(root: Path, path: Path, changed: float) -> tuple[str, dict[str, bytes]]:
    kept = root / EXECUTED / path.name
    if not kept.exists() or kept.stat().st_mtime < max(changed, path.stat().st_mtime):
        kept.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(_executed(root, path), kept)
    notebook = nbformat.read(kept, as_version=4)
    if not any(cell.get("outputs") for cell in notebook.cells):
        raise ValueError(f"{path} has no outputs")
    exporter = MarkdownExporter()
    text, resources = exporter.from_notebook_node(
        notebook, {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
    )
    note = f"\n*This page is the notebook `examples/{path.name}`, executed when the documentation was built.*\n"
    title, _, rest = text.lstrip().partition("\n")
    return f"{title}\n{note}{rest}", resources["outputs"]


def _executed(root: Path, path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    if any(cell.get("outputs") for cell in notebook.cells):
        raise ValueError(f"{path} has outputs: clear them before it is committed")
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "MCRNN_STORAGE": str(root / STORAGE),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    client = NotebookClient(
        notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    print(f"executing {path.relative_to(root)}", file=sys.stderr)
    client.execute(env=environment)
    return notebook
