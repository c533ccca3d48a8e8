"""Which rows a step runs. The cost of a step depends on its rows, active or not."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slipstream.arrays import BoolArray, IntArray

SMALL_BUCKETS = (1, 8, 32, 64)
LARGE_BUCKET_STEP = 128

GATHERED_ROWS = 8
"""Largest number of slots that are copied into a separate batch. The copy takes as much memory as the slots."""

GATHER_COST = 5
"""How often a gathered step moves each ring: it is read and written to gather it, read by attention, and read and
written to put it back. In place, attention reads it once. So gathering is faster below a fifth of the rows."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A batch of `size` rows: the first `size` slots in place, or gathered, copies of any slots."""

    size: int
    gathered: bool = False


class Buckets:
    """The batches that a runner of `slots` slots can run, and the choice of one for a step.

    `sizes`: ascending, the last one `slots`; by default 1, 8, 32, 64, 128, then every 128. `indexed`: rings
    of gathered rows stay where they are, so that only the number of active slots matters.
    """

    def __init__(self, slots: int, sizes: Sequence[int] | None = None, *, indexed: bool = False) -> None:
        sizes = default_sizes(slots) if sizes is None else tuple(sizes)
        if not sizes or sizes[0] < 1 or sizes[-1] != slots or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"buckets={list(sizes)}: expected ascending sizes from at least 1 up to slots={slots}")
        self._sizes = sizes
        self._cost = 1 if indexed else GATHER_COST
        most = slots if indexed else GATHERED_ROWS
        self._gathered = [size for size in sizes if size <= most and self._cost * size < slots]

    @property
    def all(self) -> list[Bucket]:
        """All buckets, the largest first."""
        in_place = [Bucket(size) for size in reversed(self._sizes)]
        return in_place + [Bucket(size, gathered=True) for size in reversed(self._gathered)]

    def choose(self, active_B: BoolArray) -> tuple[Bucket, slice | IntArray]:
        """The cheapest bucket that holds all active slots, and the slot of each of its rows, without repetition."""
        active = np.flatnonzero(active_B)
        reach = int(active[-1]) + 1 if len(active) else 1
        whole = self._sizes[bisect_left(self._sizes, reach)]
        at = bisect_left(self._gathered, len(active))
        if at < len(self._gathered) and self._cost * self._gathered[at] < whole:
            size = self._gathered[at]
            idle = np.flatnonzero(~active_B)[: size - len(active)]
            return Bucket(size, gathered=True), np.concatenate([active, idle])
        return Bucket(whole), slice(0, whole)


def default_sizes(slots: int) -> tuple[int, ...]:
    """The default batch sizes, finer than powers of two: a step runs at most 127 rows that it does not need."""
    sizes = [*SMALL_BUCKETS, *range(LARGE_BUCKET_STEP, slots, LARGE_BUCKET_STEP)]
    return (*(size for size in sizes if size < slots), slots)
