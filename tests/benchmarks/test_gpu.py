"""benchmarks/gpu.py run for real, on the CPU with a small model: so that it is known to work when a GPU is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import gpu  # noqa: E402

SMALL = ["--model", "small", "--device", "cpu", "--dtype", "float32", "--steps", "3"]


def run(folder: Path, *arguments: str) -> dict[str, list[dict[str, object]]]:
    gpu.main([*arguments, *SMALL, "--out", str(folder)])
    report = json.loads((folder / "gpu.json").read_text())
    assert all(f"## {part}" in (folder / "gpu.md").read_text() for part in gpu.PARTS if part in report)
    return report


def test_steps_and_memory(tmp_path: Path) -> None:
    rows = run(tmp_path, "steps", "--no-peer", "--sizes", "1,3")["steps"]
    assert [(row["package"], row["streams"]) for row in rows] == [("slipstream", 1), ("slipstream", 3)]
    assert all(0 < row["median_ms"] <= row["p99_ms"] <= row["worst_ms"] for row in rows)


def test_the_peer_in_the_same_run(tmp_path: Path) -> None:
    os.environ.setdefault("NO_TORCH_COMPILE", "1")  # it would compile its norms for longer than the test lasts
    pytest.importorskip("moshi", reason="the reference package moshi is not installed: `make oracles` installs it")
    report = run(tmp_path, "steps", "arrivals", "--sizes", "2", "--streams", "3", "--seconds", "0.5")
    for part in ("steps", "arrivals"):
        assert [row["package"] for row in report[part]] == ["slipstream", "moshi"]


def test_capacity_on_a_device_without_a_limit(tmp_path: Path) -> None:
    arguments = ["--no-peer", "--grain", "2", "--most", "5", "--limit-ms", "1e9"]
    (row,) = run(tmp_path, "capacity", *arguments)["capacity"]
    assert row["streams"] == 4


def test_streams_that_come_and_go(tmp_path: Path) -> None:
    arguments = ["--no-peer", "--streams", "8", "--seconds", "2", "--session-seconds", "0.5", "--busy", "4"]
    report = run(tmp_path, "arrivals", "live", "flush", *arguments)
    (walked,) = report["arrivals"]
    assert 0 < walked["active"] < 8
    (live,), (flushed,) = report["live"], report["flush"]
    assert 0 < live["sessions"] <= 8
    assert 0 < flushed["sessions"] <= 5


def test_correctness(tmp_path: Path) -> None:
    rows = run(tmp_path, "correctness", "--frames", "12")["correctness"]
    assert [row["share"] for row in rows] == [1.0] * 5


def test_roofline_and_attention(tmp_path: Path) -> None:
    report = run(tmp_path, "roofline", "attention", "--sizes", "2", "--streams", "2")
    *by_part, whole = report["roofline"]
    assert sum(row["bound_ms"] for row in by_part) == pytest.approx(whole["bound_ms"])
    assert all(row["measured_ms"] > row["bound_ms"] for row in report["roofline"])
    assert any("measured_ms" in row for row in report["attention"])


@pytest.mark.parametrize("true", [0, 1, 15, 16, 17, 100, 160])
def test_the_largest_that_holds_is_found(true: int) -> None:
    asked: list[int] = []
    assert gpu.largest(lambda n: asked.append(n) or n <= true, 4, 160) == true // 4 * 4  # type: ignore[func-returns-value]
    assert len(asked) < 14


def test_a_table_has_a_column_for_every_key() -> None:
    assert gpu.table([{"a": 1, "b": 2.0}, {"b": None, "c": "x"}]).splitlines() == [
        "| a | b | c |",
        "| --- | --- | --- |",
        "| 1 | 2 |  |",
        "|  |  | x |",
    ]
