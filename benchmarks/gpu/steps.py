"""The time of a step by number of streams."""

from __future__ import annotations

import torch
from benchmarks.common import Row, milliseconds
from benchmarks.gpu.bench import Bench


def steps(bench: Bench) -> list[Row]:
    rows = []
    for name, make in bench.contenders():
        for streams in bench.options.sizes:
            bench.clear()
            row: Row = {"package": name, "streams": streams}
            try:
                row |= milliseconds(make(streams), bench.options.steps)
            except torch.OutOfMemoryError:
                row |= {"median_ms": None, "p99_ms": None}
            rows.append(row | {"memory_gb": bench.memory()})
    return rows
