"""The pages of the Python API: one for each package, whose content mkdocstrings takes from the docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGES = ("mcrnn", "data_prep")
COMMAND = '__name__ == "__main__"'
"""a module with this line is a command, which has its place on another page"""


def packages(root: Path) -> list[str]:
    """Dotted names of all packages, those on top first.

    Raises:
        ValueError: there is none.
    """
    found = [path.parent.relative_to(root) for top in PACKAGES for path in sorted((root / top).rglob("__init__.py"))]
    names = [".".join(path.parts) for path in found if modules(root, ".".join(path.parts))]
    if not names:
        raise ValueError(f"there are no packages in {root}")
    return names


def modules(root: Path, package: str) -> list[str]:
    """Dotted names of the public modules of a package that are no commands."""
    folder = root.joinpath(*package.split("."))
    return [
        f"{package}.{path.stem}"
        for path in sorted(folder.glob("*.py"))
        if not path.stem.startswith("_") and COMMAND not in path.read_text(encoding="utf-8")
    ]


def _own(root: Path, package: str) -> list[str]:
    """The public functions and classes that a package itself defines, beside its modules."""
    code = root.joinpath(*package.split("."), "__init__.py").read_text(encoding="utf-8")
    defined = (node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return [node.name for node in defined if not node.name.startswith("_")]


def pages(root: Path) -> dict[str, str]:
    """The text of each page by the name of its package."""
    result = {}
    for package in packages(root):
        own = ", ".join(_own(root, package))
        lines = [
            f"# {package}",
            "",
            f"::: {package}",
            "    options:",
            f"      members: {f'[{own}]' if own else 'false'}",
        ]
        lines += ["      show_root_heading: false", "      show_root_toc_entry: false", ""]
        for module in modules(root, package):
            lines += [f"::: {module}", ""]
        result[package] = "\n".join(lines)
    return result
