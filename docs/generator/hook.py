"""The hook of MkDocs that adds what is generated to the pages that are written by hand.

Four kinds of pages are made: the configuration files (from the pydantic models), the commands (from the typer
functions), the Python API (a page a package, filled in by mkdocstrings) and the notebooks (executed). Files that have
their home outside of docs/ become pages, too. A page that would be empty is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import api_pages
import command_pages
import configuration_page
import notebook_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    "guides/cluster.md": ROOT / "cluster" / "README.md",
}
"""pages whose text has its home outside of docs/"""
API_ENTRY = "reference/api/*"
"""what stands in the navigation for the pages of the Python API"""
LEAST_CHARACTERS = 200
"""of a page that is not empty"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the Python API into the navigation."""
    assert config.nav is not None
    config.nav = _with_api(config.nav)
    return config


def _with_api(entries: list[Any]) -> list[Any]:
    result: list[Any] = []
    for entry in entries:
        if entry == API_ENTRY:
            result += [{package: f"reference/api/{package}.md"} for package in api_pages.packages(ROOT)]
        elif isinstance(entry, dict):
            result.append({title: _with_api(part) if isinstance(part, list) else part for title, part in entry.items()})
        else:
            result.append(entry)
    return result


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages: dict[str, str] = {
        "reference/configuration.md": configuration_page.page(),
        "reference/commands.md": command_pages.page(ROOT),
        **{f"reference/api/{name}.md": text for name, text in api_pages.pages(ROOT).items()},
        **{name: _linked(path.read_text(encoding="utf-8"), name) for name, path in ELSEWHERE.items()},
    }
    pictures: dict[str, bytes] = {}
    for name, (text, images) in notebook_pages.pages(ROOT).items():
        pages[f"examples/{name}.md"] = text
        pictures |= {f"examples/{image}": content for image, content in images.items()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Refuse a generated page that has come out empty.

    Raises:
        PluginError: it has.
    """
    text = re.sub(r"<[^>]+>|\s", "", html)
    if page.file.generated_by and len(text) < LEAST_CHARACTERS:
        raise PluginError(f"the generated page '{page.file.src_uri}' is empty: see docs/generator")


def _linked(text: str, page: str) -> str:
    """A file of the repository as a page: its links into docs/ are those of the site."""
    up = "../" * page.count("/")
    text = re.sub(r"\]\((?:\.\./)?docs/", f"]({up}", text)
    return re.sub(r"\]\((?:\.\./)?README\.md\)", f"]({up}index.md)", text)
