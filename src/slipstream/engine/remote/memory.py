"""Memory that an engine's process shares with those of its sessions: rings of frames and outputs, and a few numbers."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from slipstream.arrays import IntArray
from slipstream.hints.keywords import Biases
from slipstream.model.runner import CANDIDATES, MAX_BIASED, Candidates, Choice, Steering

FRAMES = 4
"""Frames in the ring of a slot. Two are in use at a time; the others are those of a stream before its restart."""
AHEAD_FRAMES = 8
"""The most frames of a slot that one call encodes ahead."""
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
    MAX_AHEAD = 4
    """The most frames that the engine encodes ahead in one call."""


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
                ("ahead", np.float32, (self.slots, AHEAD_FRAMES, self.frame_samples)),
                ("token", np.int64, rings),
                ("logprob", np.float32, rings),
                ("pause", np.float32, (*rings, MAX_PAUSE_HEADS)),
                ("biases", np.int32, rings),
                ("bias_id", np.int32, (*rings, MAX_BIASED)),
                ("bias", np.float32, (*rings, MAX_BIASED)),
                ("candidate", np.int64, (*rings, CANDIDATES)),
                ("candidate_logprob", np.float32, (*rings, CANDIDATES)),
                ("plain", np.int64, rings),
                ("plain_logprob", np.float32, rings),
            ],
            align=True,
        )


class SharedMemory:
    """A view of the memory of one engine.

    Frame n of a slot since its admission is in place n modulo `FRAMES`, and so is its output. Messages report which
    places are filled (`Kind`), so no place is read while it is written. A frame may have biases of text tokens; its
    output then has candidates. `biases_BF` has their number plus one, and 0 for a frame without steering.
    `ahead_BAS` has the frames of a slot that are encoded ahead, and may change once the first of them has its output.
    The kernel gives pages only to what is used.

    Args:
        file: A file of `create_file`, which the first view enlarges.
        shape: The same for all views.
    """

    def __init__(self, file: int, shape: Shape) -> None:
        if os.fstat(file).st_size < shape.dtype.itemsize:
            os.ftruncate(file, shape.dtype.itemsize)
        record = np.frombuffer(mmap.mmap(file, shape.dtype.itemsize), shape.dtype)[0]
        self.stats = record["stats"]
        self.pcm_BFS, self.ahead_BAS, self.token_BF = record["pcm"], record["ahead"], record["token"]
        self.logprob_BF, self.pause_BFH = record["logprob"], record["pause"]
        self.biases_BF, self.bias_id_BFN, self.bias_BFN = record["biases"], record["bias_id"], record["bias"]
        self.candidate_BFK, self.candidate_logprob_BFK = record["candidate"], record["candidate_logprob"]
        self.plain_BF, self.plain_logprob_BF = record["plain"], record["plain_logprob"]

    def steer(self, slot: int, place: int, biases: Biases | None) -> None:
        """Write the biases of a frame; None for a frame without steering."""
        if biases is None:
            self.biases_BF[slot, place] = 0
            return
        number = len(biases.id_N)
        self.biases_BF[slot, place] = number + 1
        self.bias_id_BFN[slot, place, :number], self.bias_BFN[slot, place, :number] = biases.id_N, biases.bias_N

    def steering(self, slots_N: IntArray, places_N: IntArray) -> Steering | None:
        """Return the steering of a step of these frames; None if none of them has one."""
        number_N = self.biases_BF[slots_N, places_N] - 1
        if (longest := int(number_N.max(initial=-1))) < 0:
            return None
        slots = len(self.biases_BF)
        steering = Steering(np.zeros((slots, longest), np.int64), np.zeros((slots, longest), np.float32))
        for slot, place, number in zip(slots_N.tolist(), places_N.tolist(), number_N.tolist(), strict=True):
            if number > 0:
                steering.id_BN[slot, :number] = self.bias_id_BFN[slot, place, :number]
                steering.bias_BN[slot, :number] = self.bias_BFN[slot, place, :number]
        return steering

    def write_candidates(self, slots_N: IntArray, places_N: IntArray, found: Candidates) -> None:
        """Write the candidates of these frames."""
        self.candidate_BFK[slots_N, places_N] = found.token_BK[slots_N]
        self.candidate_logprob_BFK[slots_N, places_N] = found.logprob_BK[slots_N]
        self.plain_BF[slots_N, places_N] = found.plain_B[slots_N]
        self.plain_logprob_BF[slots_N, places_N] = found.plain_logprob_B[slots_N]

    def output(self, slot: int, place: int) -> tuple[int, float, list[float]]:
        """Return the token, its log-probability and the pause probabilities of a frame."""
        pause_H = self.pause_BFH[slot, place, : int(self.stats[Stat.PAUSE_HEADS])]
        return int(self.token_BF[slot, place]), float(self.logprob_BF[slot, place]), pause_H.tolist()

    def choices(self, slots: Sequence[int], place: int) -> list[Choice]:
        """Return the choice of each of these slots for a frame of their session, which must have steering."""
        return [
            Choice(
                int(self.token_BF[slot, place]),
                self.candidate_BFK[slot, place].tolist(),
                self.candidate_logprob_BFK[slot, place].tolist(),
                int(self.plain_BF[slot, place]),
                float(self.plain_logprob_BF[slot, place]),
            )
            for slot in slots
        ]


def create_file() -> int:
    """Create an empty file in memory, and return its descriptor.

    It has no name: the kernel frees it with the last process that holds it, however these processes end.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("slipstream", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as unnamed:
        return os.dup(unnamed.fileno())
