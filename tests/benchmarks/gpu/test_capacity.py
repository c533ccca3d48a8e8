"""The search for the largest number of streams."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from benchmarks.gpu.capacity import capacity, largest  # noqa: E402

from benchmarks.gpu import capacity as module  # noqa: E402


@pytest.mark.parametrize("true", [0, 1, 15, 16, 17, 100, 160])
def test_the_largest_number_is_found_in_few_tries(true: int) -> None:
    tried: list[int] = []
    assert largest(lambda n: tried.append(n) or n <= true, 4, 160) == true // 4 * 4  # type: ignore[func-returns-value]
    assert len(tried) < 14


@pytest.mark.parametrize(("limit_ms", "memory", "expected"), [(80.0, 1000, 78), (80.0, 50, 50), (1.0, 1000, 0)])
def test_capacity_stops_at_the_time_limit_and_at_the_end_of_memory(
    monkeypatch: pytest.MonkeyPatch, limit_ms: float, memory: int, expected: int
) -> None:
    def make(streams: int) -> int:
        if streams > memory:
            raise torch.OutOfMemoryError
        return streams

    # A step takes 1 ms, and 1 ms for each stream.
    monkeypatch.setattr(module, "milliseconds", lambda streams, steps: {"p99_ms": 1.0 + streams})
    bench = SimpleNamespace(
        options=SimpleNamespace(steps=1, limit_ms=limit_ms, grain=2, most=4096),
        clear=lambda: None,
        memory=lambda: 1.5,
        contenders=lambda: [("slipstream", make)],
    )
    (row,) = capacity(bench)  # type: ignore[arg-type]
    assert row["streams"] == expected
    assert row.get("memory_gb") == (1.5 if expected else None)
