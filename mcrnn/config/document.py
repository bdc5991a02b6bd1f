"""A YAML file with the line of every key, so that an error names where it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mcrnn.config.paths import Values, known_fields, with_values
from mcrnn.config.search import SearchConfig
from mcrnn.errors import UserError, did_you_mean


class Document:
    """A YAML file that remembers the line of each key, together with settings that take the place of values in it.

    Args:
        path: Path of the file as the user has given it, for messages.
        file: Content of the file.
        root: YAML node of the content, with the line of every key.
        settings: Values of fields by dotted path, from the command line.
    """

    def __init__(self, path: str, file: dict[str, Any], root: yaml.Node | None, settings: Values) -> None:
        self.path, self.file, self.root, self.settings = path, file, root, settings
        self.errors: list[str] = []
        """A line for each error found so far."""

    @property
    def content(self) -> dict[str, Any]:
        """The content of the file with the settings in it; a field that is set has no entry in the space any more."""
        if not is_nested(self.file):
            return self.file
        content = with_values(self.file, self.settings)
        if isinstance(content.get("space"), dict):
            content["space"] = {key: entry for key, entry in content["space"].items() if key not in self.settings}
        return content

    @classmethod
    def read(cls, path: str, settings: Sequence[str] = ()) -> Document:
        """Read a file.

        Args:
            path: Path of the file, see `find`.
            settings: Settings of the form `field=value`.

        Raises:
            UserError: The file is missing, cannot be read, is no YAML or no mapping, or has a key twice; or a setting
                is not of that form or names no field.
        """
        file = find(path)
        try:
            text = file.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            content = yaml.safe_load(text)
        except UnicodeDecodeError:
            raise UserError(f"{path} is not a YAML file: it is not UTF-8 text") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except RecursionError:
            raise UserError(f"{path} is not a configuration: it is nested too deeply") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f":{mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise UserError(f"{path}{where}: not valid YAML: {problem}") from None
        if not isinstance(content, dict):
            raise UserError(f"{path} is not a configuration: it must be a mapping with the key 'data' and others")
        document = cls(path, content, root, _parse(settings))
        document._refuse_duplicates(root)
        return document

    def _refuse_duplicates(self, node: yaml.Node | None) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    raise UserError(f"{self.path}:{key.start_mark.line + 1}: '{key.value}' is given twice")
                seen.add(key.value)
                self._refuse_duplicates(value)

    def line(self, location: tuple[Any, ...]) -> int:
        """Return the line of a key, or of its nearest parent that is in the file.

        Args:
            location: Keys that lead to it, from the root.
        """
        node, line = self.root, 1
        for part in location:
            if not isinstance(node, yaml.MappingNode):
                break
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                break
        return line

    def add_error(self, location: tuple[Any, ...], text: str) -> None:
        """Add an error of the file, or of a setting.

        Args:
            location: Keys that lead to the key that is wrong, from the root.
            text: What is wrong with it.
        """
        key = ".".join(map(str, location))
        for path, value in self.settings.items():
            if key == path or key.startswith(f"{path}."):
                self.errors.append(f"--set {path}={value}: {text}")
                return
        self.errors.append(f"{self.path}:{self.line(location)}: {key + ': ' if key else ''}{text}")

    def raise_errors(self) -> None:
        """Raise all errors that were added, if there are any.

        Raises:
            UserError: There are; its message has a line for each.
        """
        if self.errors:
            raise UserError("\n".join(dict.fromkeys(self.errors)))


def _parse(settings: Sequence[str]) -> Values:
    """Read settings of the form `field=value`, with each value as YAML."""
    known = [*known_fields(), *known_fields(SearchConfig, "search.")]
    values: Values = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set takes FIELD=VALUE such as train.epochs=5, not '{setting}'")
        if path not in known:
            raise UserError(f"--set {path}: no field of the configuration{did_you_mean(path, known)}")
        try:
            values[path] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {path}: '{text}' is not a YAML value") from None
    return values


def find(path: str) -> Path:
    """Return the path of a configuration file.

    A file that is not found relative to the current folder is looked for among those that are shipped with the
    package, so that `search_spaces/ns.yaml` can be named from anywhere.

    Raises:
        UserError: There is no such file in either place.
    """
    if Path(path).is_file():
        return Path(path)
    shipped = shipped_folder()
    if (shipped.parent / path).is_file() and (shipped.parent / path).is_relative_to(shipped):
        return shipped.parent / path
    here = Path(path).parent
    names = {str(here / p.name) for p in here.glob("*.yaml")} if here.is_dir() else set()
    names |= {p.relative_to(shipped.parent).as_posix() for p in shipped.rglob("*.yaml")}
    raise UserError(f"there is no file '{path}'{did_you_mean(path, names)}")


def shipped_folder() -> Path:
    """Return the folder of the configuration files that are shipped with the package."""
    import search_spaces

    return Path(search_spaces.__path__[0]).resolve()


def is_nested(content: dict[str, Any]) -> bool:
    """Return whether all sections that are given are mappings, so that dotted paths lead somewhere in them."""
    return all(isinstance(content.get(k, {}), dict) for k in ("data", "model", "train", "validation", "search"))
