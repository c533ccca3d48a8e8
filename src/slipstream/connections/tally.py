"""Counts behind the limits of a server: of one process, or of several that share them."""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from slipstream.arrays import IntArray

START_ENTRIES = 1 << 16
"""Starts that processes remember together, for limits per minute."""
MINUTE = 60.0


class Tally(Protocol):
    """Counts what is open under names, and what was started in the last minute. Called in the event loop."""

    def enter(self, limits: Sequence[tuple[str, int]]) -> tuple[str, int] | None:
        """Count one more under each name, or none if a name is at its limit.

        Args:
            limits: Names, and how many each may have.

        Returns:
            The first name at its limit, and its count; None after counting.
        """
        ...

    def leave(self, *names: str) -> None:
        """Count one less under each name."""
        ...

    def start(self, name: str, per_minute: int, now: float) -> float:
        """Count a start, unless the last minute has `per_minute` of them.

        Args:
            now: Seconds on a monotonic clock.

        Returns:
            0 after counting, else the seconds until the next start is possible.
        """
        ...


class LocalTally:
    """The counts of one process."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._starts: defaultdict[str, deque[float]] = defaultdict(deque)

    def enter(self, limits: Sequence[tuple[str, int]]) -> tuple[str, int] | None:
        """See `Tally.enter`."""
        for name, most in limits:
            if self._open[name] >= most:
                return name, self._open[name]
        self._open.update(name for name, _ in limits)
        return None

    def leave(self, *names: str) -> None:
        """See `Tally.leave`."""
        for name in names:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]

    def start(self, name: str, per_minute: int, now: float) -> float:
        """See `Tally.start`."""
        starts = self._starts[name]
        while starts and (len(starts) > per_minute or now - starts[0] >= MINUTE):
            starts.popleft()
        if len(starts) == per_minute:
            return MINUTE - (now - starts[0])
        starts.append(now)
        return 0.0


class SharedTally:
    """The counts of several processes, in memory that they share.

    Each process counts in its own row. A limit applies to the sum over the rows. The row of a process that
    has died is cleared (`clear`). A lock of the kernel (fcntl(2)), which also ends with its process, guards the rest.

    Args:
        file: Descriptor of the memory, of `size` bytes filled with zeros.
        rows: Number of processes.
        row: The row of this process.
        names: How many names may have a count at the same time.
    """

    def __init__(self, file: int, rows: int, row: int, names: int) -> None:
        record = np.frombuffer(mmap.mmap(file, self.size(rows, names)), _record(rows, names))[0]
        self._file, self._row = file, row
        self._names_N, self._counts_RN = record["names"], record["counts"]
        self._start_names_E, self._start_times_E, self._next = (
            record["start_names"],
            record["start_times"],
            record["next"],
        )

    @staticmethod
    def size(rows: int, names: int) -> int:
        """Return the size of the memory in bytes."""
        return _record(rows, names).itemsize

    def enter(self, limits: Sequence[tuple[str, int]]) -> tuple[str, int] | None:
        """See `Tally.enter`."""
        with self._locked():
            for counted, (name, most) in enumerate(limits):
                column = self._column(name)
                if (count := int(self._counts_RN[:, column].sum())) >= most:
                    for earlier, _ in limits[:counted]:
                        self._counts_RN[self._row, self._column(earlier)] -= 1
                    return name, count
                self._counts_RN[self._row, column] += 1
            return None

    def leave(self, *names: str) -> None:
        """See `Tally.leave`."""
        with self._locked():
            for name in names:
                self._counts_RN[self._row, self._column(name)] -= 1

    def start(self, name: str, per_minute: int, now: float) -> float:
        """See `Tally.start`."""
        with self._locked():
            mine_E = (self._start_names_E == _hash(name)) & (self._start_times_E > now - MINUTE)
            times = np.sort(self._start_times_E[mine_E])
            if len(times) >= per_minute:
                return MINUTE - (now - float(times[len(times) - per_minute]))
            entry = int(self._next[0]) % START_ENTRIES
            self._start_names_E[entry], self._start_times_E[entry] = _hash(name), now
            self._next[0] += 1
            return 0.0

    def clear(self, row: int) -> None:
        """Forget what a process that has ended had open."""
        with self._locked():
            self._counts_RN[row] = 0

    def _column(self, name: str) -> int:
        """Return the column of a name. A new name gets the column of one that counts nothing."""
        hashed = _hash(name)
        found: IntArray = np.flatnonzero(self._names_N == hashed)
        if not len(found):
            found = np.flatnonzero(self._counts_RN.sum(axis=0) == 0)
            self._names_N[found[0]] = hashed
        return int(found[0])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl  # not on Windows, which has no worker processes either

        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _record(rows: int, names: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("names", np.uint64, names),
            ("counts", np.int64, (rows, names)),
            ("start_names", np.uint64, START_ENTRIES),
            ("start_times", np.float64, START_ENTRIES),
            ("next", np.int64, 1),
        ],
        align=True,
    )


def _hash(name: str) -> int:
    """Return a number of 64 bits other than 0 for a name."""
    return max(1, int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))
