"""The end of a recording."""

from __future__ import annotations

from collections import deque

import numpy as np

from slipstream.arrays import FloatArray


class Tape:
    """The end of a recording, by sample number: from `begin` up to `end`."""

    def __init__(self) -> None:
        self.begin = self.end = 0
        self._pieces: deque[FloatArray] = deque()

    def append(self, samples_S: FloatArray) -> None:
        """Add samples."""
        self._pieces.append(samples_S)
        self.end += len(samples_S)

    def drop_before(self, position: int) -> None:
        """Forget the pieces that end before a sample."""
        while self._pieces and self.begin + len(self._pieces[0]) <= position:
            self.begin += len(self._pieces.popleft())

    def read(self, start: int, stop: int) -> FloatArray:
        """Return the samples `start` up to `stop`."""
        found: list[FloatArray] = []
        end = self.end
        for piece in reversed(self._pieces):
            begin = end - len(piece)
            if begin < stop:
                found.append(piece[max(0, start - begin) : stop - begin])
            if begin <= start:
                break
            end = begin
        return np.concatenate(found[::-1])
