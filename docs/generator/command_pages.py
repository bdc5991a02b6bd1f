"""The reference of the commands: every argument and option, from the typer functions."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from mcrnn.main import COMMANDS, DATA_COMMANDS

FOLDERS = ("mcrnn", "data_prep", "cluster")
STARTED = re.compile(r'^if __name__ == "__main__":\n\s+main\((\w+)\)', re.MULTILINE)
"""how the module of a command ends"""

INTRODUCTION = """
# Commands

This page is generated from the functions behind the commands. `--help` prints the same.

Each command can be called in two ways, which do the same: as a module with `python -m`, and through the console command
`mcrnn`. `mcrnn --install-completion` lets the shell complete commands and options.

Every command exits with 0 when it has done what was asked. It exits with 2 and one line on stderr when the input has
to be changed: a misspelt field, a missing store, a wrong key. It exits with 130 after Ctrl-C. A command that writes a
store, a run or a search continues it when the same command is given again, whatever has interrupted it.
"""


def page(root: Path) -> str:
    """The whole page.

    Raises:
        ValueError: there are no commands, or the console command `mcrnn` has one that `python -m` has not.
    """
    found = {module: function for folder in FOLDERS for module, function in _commands(root, folder)}
    if not found:
        raise ValueError("there are no commands")
    console = {module: f"mcrnn {name}" for name, (module, _, _) in COMMANDS.items()}
    console |= {module: f"mcrnn data {name}" for name, (module, _, _) in DATA_COMMANDS.items()}
    if missing := console.keys() - found.keys():
        raise ValueError(f"these modules are commands of mcrnn but cannot be run themselves: {sorted(missing)}")
    ordered = [*console, *(module for module in found if module not in console)]
    parts = [_part(module, found[module], console.get(module)) for module in ordered]
    return "\n\n".join([INTRODUCTION, *parts]) + "\n"


def _commands(root: Path, folder: str) -> list[tuple[str, Callable[..., Any]]]:
    commands = []
    for path in sorted((root / folder).rglob("*.py")):
        match = STARTED.search(path.read_text(encoding="utf-8"))
        if match:
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            commands.append((name, getattr(importlib.import_module(name), match.group(1))))
    return commands


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command."""

    name: str
    """as a user types it, with the name of its value"""
    is_argument: bool
    default: str
    meaning: str

    @classmethod
    def of(cls, name: str, hint: Any, default: Any) -> Parameter:
        """From a parameter of the command's function.

        Raises:
            ValueError: it has no help.
        """
        assert get_origin(hint) is Annotated, f"{name} is neither an argument nor an option"
        kind, info = get_args(hint)[:2]
        assert isinstance(info, ArgumentInfo | OptionInfo)
        if not info.help:
            raise ValueError(f"the parameter {name} has no help")
        value = info.metavar or {int: "INTEGER", float: "FLOAT"}.get(_plain(kind), "TEXT")
        if isinstance(info, ArgumentInfo):
            return cls(info.metavar or name.upper(), True, "", info.help)
        # the first name of an annotated option is where a default would be
        given = [
            each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str) and each[:1] == "-"
        ]
        names = given or [f"--{name.replace('_', '-')}"]
        if _plain(kind) is not bool:
            names = [f"{each} {value}" for each in names]
        elif not given:
            names += [f"--no-{name.replace('_', '-')}"]
        meaning = info.help + _bounds(info)
        shown = "required" if default is inspect.Parameter.empty else ""
        if default not in (None, False, inspect.Parameter.empty):
            shown = f"`{default}`"
        return cls(", ".join(f"`{each}`" for each in names), False, shown, meaning)


def _plain(kind: Any) -> Any:
    """A type without `None` and without the list around it."""
    if get_origin(kind) in (Union, types.UnionType):
        return _plain(next(each for each in get_args(kind) if each is not type(None)))
    return _plain(get_args(kind)[0]) if get_origin(kind) is list else kind


def _bounds(info: OptionInfo) -> str:
    if info.min is None and info.max is None:
        return ""
    if info.max is None:
        return f" (≥ {info.min})"
    return f" ({info.min} to {info.max})"


def _part(module: str, function: Callable[..., Any], console: str | None) -> str:
    hints = get_type_hints(function, include_extras=True)
    defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    parameters = [Parameter.of(name, hints[name], default) for name, default in defaults.items()]
    arguments = [each for each in parameters if each.is_argument]
    options = [each for each in parameters if not each.is_argument]
    rest = "".join([" [OPTIONS]" if options else "", *(f" {each.name}" for each in arguments)])
    calls = [
        f"python -m {module}" if console else f"python {module.replace('.', '/')}.py",
        *([console] if console else []),
    ]
    call = "\n".join(call + rest for call in calls)
    parts = [f"## {module}", inspect.getdoc(function) or "", f"```\n{call}\n```"]
    if arguments:
        parts.append(_table(["argument", "meaning"], [[f"`{each.name}`", each.meaning] for each in arguments]))
    if options:
        headers, rows = ["option", "default", "meaning"], [[o.name, o.default, o.meaning] for o in options]
        if not any(each.default for each in options):
            headers, rows = ["option", "meaning"], [[o.name, o.meaning] for o in options]
        parts.append(_table(headers, rows))
    return "\n\n".join(parts)


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
