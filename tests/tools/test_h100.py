"""The driver of the measurements on a GPU machine: parts in separate processes, with rows and limits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]


def run(out: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, object]]]:
    command = [sys.executable, "tools/h100/run.py", *arguments, "--device", "cpu", "--small", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done, [json.loads(line) for line in out.read_text().splitlines()]


def test_a_part_writes_a_line_per_row_and_prints_a_table(tmp_path: Path) -> None:
    done, rows = run(tmp_path / "rows.jsonl", "tune")
    assert done.returncode == 0, done.stderr
    assert "## tune" in done.stdout
    assert {row["part"] for row in rows} == {"tune"}
    assert any(row.get("kernel") == "MATH" and "ms" in row for row in rows)
    assert "seconds" in rows[-1]


def test_a_part_that_takes_too_long_is_stopped_and_reported(tmp_path: Path) -> None:
    done, rows = run(tmp_path / "rows.jsonl", "tune", "--limit", "0.2")
    assert done.returncode == 1
    assert rows[-2]["error"] == "stopped after 0.2 s"
