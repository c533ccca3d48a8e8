"""Every public callable of the Python reference documents its arguments and its result."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

griffe = pytest.importorskip("griffe", reason="pip install 'slipstream-stt[docs]'")

ROOT = Path(__file__).parents[2]
EXAMPLES = {"slipstream.load", "slipstream.load_runner", "slipstream.Transcriber", "slipstream.client"}
"""The main interface, whose callables have an example each."""
PENDING = ("slipstream.engine.", "slipstream.backends.", "slipstream.nn.")
"""Packages whose docstrings are in sentences: add their argument lists, and remove them here."""
NO_EXAMPLE = {"Transcriber.close", "BaseStream", "Stream.close"}


@pytest.fixture(scope="module")
def package() -> Any:
    return griffe.load("slipstream", search_paths=[ROOT / "src"], docstring_parser="google", resolve_aliases=True)


def pages() -> list[str]:
    """The names that the reference documents."""
    texts = ((ROOT / f"docs/reference/{page}.md").read_text() for page in ("python", "client", "moshi"))
    return [name for text in texts for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)]


def callables(entry: Any) -> Iterator[Any]:
    """The public functions, methods and properties of a documented object, and the object itself."""
    entry = entry.final_target if entry.is_alias else entry
    yield entry
    if entry.is_class or entry.is_module:
        for name, member in entry.members.items():
            outside = entry.is_module and (member.is_alias or member.is_module)
            if not name.startswith("_") and not outside:
                yield from callables(member)


def gaps(entry: Any) -> list[str]:
    """What the docstring lacks."""
    if entry.is_attribute and "property" not in entry.labels:
        return []
    if entry.docstring is None:
        return ["no docstring"]
    if not entry.is_function:
        return []
    sections = {section.kind.value: section.value for section in entry.docstring.parsed}
    described = {argument.name.lstrip("*") for argument in sections.get("parameters", [])}
    described |= set(re.findall(r"`(\w+)`", entry.docstring.value))
    arguments = [p.name for p in entry.parameters if p.name not in ("self", "cls", *described)]
    returns = str(entry.returns) not in ("None", "_Sent")
    stated = {"returns", "yields"} & sections.keys() or re.match(r"Return|Decode|List", entry.docstring.value)
    return [*(f"no argument {name}" for name in arguments), *(["no result"] if returns and not stated else [])]


@pytest.mark.parametrize("name", pages())
def test_docstrings_describe_arguments_and_results(package: Any, name: str) -> None:
    entries = [e for e in callables(package[name.removeprefix("slipstream.")]) if not e.path.startswith(PENDING)]
    assert {entry.path: found for entry in entries if (found := gaps(entry))} == {}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_main_interface_has_examples(package: Any, name: str) -> None:
    entries = [entry for entry in callables(package[name.removeprefix("slipstream.")]) if entry.is_function]
    assert entries
    lacking = [entry.path for entry in entries if "Example:" not in entry.docstring.value]
    assert [path for path in lacking if not any(exempt in path for exempt in NO_EXAMPLE)] == []
