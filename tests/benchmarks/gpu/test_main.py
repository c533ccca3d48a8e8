"""`python -m benchmarks.gpu` on the CPU with a small model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks.gpu.__main__ import PARTS, main  # noqa: E402

SMALL = ["--model", "small", "--device", "cpu", "--dtype", "float32", "--steps", "3"]


def run(folder: Path, *arguments: str) -> dict[str, list[dict[str, object]]]:
    main([*arguments, *SMALL, "--out", str(folder)])
    report = json.loads((folder / "gpu.json").read_text())
    assert all(f"## {part}" in (folder / "gpu.md").read_text() for part in PARTS if part in report)
    return report


def test_steps_have_a_row_for_each_size(tmp_path: Path) -> None:
    rows = run(tmp_path, "steps", "--no-peer", "--sizes", "1,3")["steps"]
    assert [(row["package"], row["streams"]) for row in rows] == [("slipstream", 1), ("slipstream", 3)]
    assert all(row["median_ms"] and row["memory_gb"] is None for row in rows)


def test_a_part_that_fails_leaves_the_parts_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "capacity", lambda bench: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "steps", "capacity", "--no-peer", "--sizes", "1")
    assert json.loads((tmp_path / "gpu.json").read_text())["steps"][0]["streams"] == 1


def test_the_moshi_package_runs_in_the_same_run(tmp_path: Path) -> None:
    os.environ.setdefault("NO_TORCH_COMPILE", "1")  # compiling its norms would take longer than the test
    pytest.importorskip("moshi", reason="the reference package moshi is not installed: `make oracles` installs it")
    report = run(tmp_path, "steps", "arrivals", "--sizes", "2", "--streams", "3", "--seconds", "0.5")
    for part in ("steps", "arrivals"):
        assert [row["package"] for row in report[part]] == ["slipstream", "moshi"]


def test_every_part_of_the_roofline_is_measured(tmp_path: Path) -> None:
    report = run(tmp_path, "roofline", "attention", "--sizes", "2", "--streams", "2")
    *by_part, whole = report["roofline"]
    assert whole["part"] == "the whole step"
    assert len({row["part"] for row in by_part}) == 7
    # A CPU is far from the limits of the GPU that the bounds are for.
    assert all(row["times_bound"] > 1 for row in report["roofline"])
    assert {row["kernel"] for row in report["attention"] if "measured_ms" in row} >= {"math"}
