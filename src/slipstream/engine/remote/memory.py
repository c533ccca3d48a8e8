"""Memory that an engine's process shares with those of its sessions: rings of frames and outputs, and a few numbers."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

FRAMES = 4
"""Frames in the ring of a slot. Two are in use at a time; the others are those of a stream before its restart."""
MAX_PAUSE_HEADS = 16


class Stat(IntEnum):
    """A number that the engine's process writes and the others read."""

    STEP_BEGAN = 0
    """`time.monotonic` when the step in progress began; 0 between steps."""
    ACTIVE = 1
    """Slots in use."""
    WAITING = 2
    """Sessions that wait for a slot."""
    PAUSE_HEADS = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """What determines the size of the memory."""

    slots: int
    frame_samples: int

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Of one record that covers all of the memory."""
        rings = (self.slots, FRAMES)
        return np.dtype(
            [
                ("stats", np.float64, len(Stat)),
                ("pcm", np.float32, (*rings, self.frame_samples)),
                ("token", np.int64, rings),
                ("logprob", np.float32, rings),
                ("pause", np.float32, (*rings, MAX_PAUSE_HEADS)),
            ],
            align=True,
        )


class SharedMemory:
    """A view of the memory of one engine.

    Frame n of a slot since its admission is in place n modulo `FRAMES`, and so is its output. Messages report which
    places are filled (`Kind`), so no place is read while it is written.

    Args:
        file: A file of `create_file`, which the first view enlarges.
        shape: The same for all views.
    """

    def __init__(self, file: int, shape: Shape) -> None:
        if os.fstat(file).st_size < shape.dtype.itemsize:
            os.ftruncate(file, shape.dtype.itemsize)
        record = np.frombuffer(mmap.mmap(file, shape.dtype.itemsize), shape.dtype)[0]
        self.stats = record["stats"]
        self.pcm_BFS, self.token_BF = record["pcm"], record["token"]
        self.logprob_BF, self.pause_BFH = record["logprob"], record["pause"]


def create_file() -> int:
    """Create an empty file in memory, and return its descriptor.

    It has no name: the kernel frees it with the last process that holds it, however these processes end.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("slipstream", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as unnamed:
        return os.dup(unnamed.fileno())
