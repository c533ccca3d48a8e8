"""The page of tested clients names tests that exist, and the pinned versions of the clients."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/reference/tested-clients.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.endswith(("py` |", "` |"))
]


def test_the_page_has_rows() -> None:
    assert len(ROWS) > 30
    assert all(len(row) == 5 for row in ROWS)


@pytest.mark.parametrize("test", [row[-1].strip("`") for row in ROWS])
def test_each_test_exists(test: str) -> None:
    path, _, name = test.partition("::")
    source = (ROOT / path).read_text(encoding="utf-8")
    assert f"def {name}(" in source if name else "def test_" in source


def test_the_versions_are_those_that_are_pinned() -> None:
    pinned = set(re.findall(r"==([\w.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8")))
    assert {row[2] for row in ROWS} - {""} <= pinned
