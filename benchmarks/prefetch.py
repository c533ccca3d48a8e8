"""What a batch from a worker process costs the training process: `python -m benchmarks.prefetch`.

Batches of samples, through shared memory and through a pipe in turn. The cost is processor time of the reader.
"""

from __future__ import annotations

import time
from itertools import count, islice

import numpy as np

from slipstream.data import prefetch as module

ROWS, SAMPLES, BATCHES, TURNS = 16, 15 * 24_000, 10, 3


def draw(number: int) -> list[np.ndarray]:
    """Two kinds of samples of each row."""
    return [np.full((ROWS, SAMPLES), number, np.float32) for _ in range(2)]


def cost(shared: bool) -> float:
    """Processor seconds per batch."""
    module._has_room = lambda size: shared
    batches = module.prefetch(draw, count(), 2, 1)
    next(batches)
    began = time.process_time()
    for _ in islice(batches, BATCHES):
        pass
    seconds = (time.process_time() - began) / BATCHES
    batches.close()
    return seconds


def main() -> None:
    turns = [(cost(True), cost(False)) for _ in range(TURNS)]
    for name, seconds in zip(("shared memory", "pipe"), zip(*turns, strict=True), strict=True):
        print(f"{name}: {1e3 * min(seconds):.1f} ms for a batch of {2 * 4 * ROWS * SAMPLES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
