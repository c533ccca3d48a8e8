"""The largest number of streams in real time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.common import Row, milliseconds
from benchmarks.gpu.bench import Bench


def capacity(bench: Bench) -> list[Row]:
    rows = []
    for name, make in bench.contenders():
        tried: dict[int, Row] = {}

        def holds(streams: int, make: Any = make, tried: dict[int, Row] = tried) -> bool:
            bench.clear()
            try:
                tried[streams] = milliseconds(make(streams), bench.options.steps) | {"memory_gb": bench.memory()}
            except torch.OutOfMemoryError:
                return False
            return bool(tried[streams]["p99_ms"] < bench.options.limit_ms)

        most = largest(holds, bench.options.grain, bench.options.most)
        rows.append({"package": name, "streams": most, **tried.get(most, {})})
    return rows


def largest(holds: Callable[[int], bool], grain: int, most: int) -> int:
    """Find the largest multiple of `grain` up to `most` that holds, if all smaller ones hold too; 0 if none does."""
    low, high = 0, 1
    while high * grain <= most and holds(high * grain):
        low, high = high, 2 * high
    high = min(high, most // grain + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle * grain) else (low, middle)
    return low * grain
