"""Hooks of the documentation site: pages from outside `docs`, links out of `docs`, and the help of the command line.

A line `{include PATH}` is the text of that file of the repository, `{command line}` the help of every command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Expand the two directives, and turn links to files that are not pages into plain text."""
    source = DOCS / page.file.src_path
    if path := _included(markdown):
        return _links(path.read_text(encoding="utf-8"), path.parent, source.parent)
    return _links(markdown.replace("{command line}", command_line()), source.parent, source.parent)


def command_line() -> str:
    """Return the help of all commands as Markdown."""
    import typer
    from typer.cli import get_docs_for_click

    from slipstream.cli.app import app

    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="slipstream").split("\n", 1)[1]


def _included(markdown: str) -> Path | None:
    """Return the file whose text a page is, or None for a page with a text of its own."""
    include = re.fullmatch(r"\{include (\S+)\}", markdown.strip())
    return ROOT / include.group(1) if include else None


@cache
def _pages() -> Mapping[Path | None, Path]:
    """The pages that show files from outside `docs`, by these files."""
    return {_included(page.read_text(encoding="utf-8")): page for page in DOCS.rglob("*.md")}


def _links(markdown: str, written_in: Path, shown_in: Path) -> str:
    """Make the links of a text those of the page `shown_in`, where files outside `docs` are pages or plain text."""

    def convert(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        path = (written_in / target).resolve()
        if not path.exists() or path.suffix == ".html":
            return match.group()  # MkDocs reports it
        if path.is_relative_to(DOCS):
            return f"{image}[{text}]({Path(os.path.relpath(path, shown_in)).as_posix()}{anchor or ''})"
        if page := _pages().get(path):
            return f"[{text}]({Path(os.path.relpath(page, shown_in)).as_posix()}{anchor or ''})"
        return f"{text} (`{path.relative_to(ROOT).as_posix()}`)"

    return LINK.sub(convert, markdown)
