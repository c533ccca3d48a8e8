"""What a session has still to flush: markers, barriers, and the flush in progress."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import Framer
from slipstream.model.text import WordDecoder

if TYPE_CHECKING:
    from slipstream.engine.writer import Writer

MAX_EXTRA_FLUSH_FRAMES = 25
"""After the delay, a flush continues while the model writes: fast speech leaves a queue of tokens."""


def flush_steps(delay_frames: int) -> int:
    """Return the most steps that a flush takes: an incomplete frame, the delay, and what the model still writes."""
    return 1 + delay_frames + MAX_EXTRA_FLUSH_FRAMES


@dataclass(frozen=True, slots=True)
class Marker:
    """A marker, reached when the text of the first `position` samples is out."""

    position: int
    id: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """A flush after the first `position` samples, before any later audio is processed."""

    position: int
    final: bool


@dataclass(slots=True)
class Flush:
    """A flush in progress.

    `tail`: an incomplete frame at its position. `writer_before`: restored after it.
    """

    barrier: Barrier
    began: float
    tail: FloatArray | None
    frames_left: int
    writer_before: Writer

    def take_frame(self) -> FloatArray | float:
        frame_S, self.tail = self.tail, None
        return 0.0 if frame_S is None else frame_S

    def over(self, decoder: WordDecoder) -> bool:
        """Whether all text is out: the delay has passed and the model is not within a word."""
        if self.frames_left > 0:
            return False
        return decoder.writing_frame is None or self.frames_left <= -MAX_EXTRA_FLUSH_FRAMES


class Silence:
    """Finds where speech is followed by silence."""

    def __init__(self) -> None:
        self._quiet_frames, self._spoke = 0, False

    def push(self, voiced: bool, frames: float) -> bool:
        """Process the next frame. Returns whether `frames` without voice follow speech; once for each silence."""
        self._quiet_frames = 0 if voiced else self._quiet_frames + 1
        self._spoke |= voiced
        if not self._spoke or self._quiet_frames < frames:
            return False
        self._spoke = False
        return True


def next_tail(frames: Sequence[FloatArray], framer: Framer, samples: int) -> FloatArray | None:
    """Return the first `samples` of the next frame, followed by silence; None if `samples` is 0.

    The frame is the first of `frames`, or the incomplete one in `framer`.
    """
    if samples == 0:
        return None
    frame_S = frames[0] if frames else copy.copy(framer).flush()[0][0]
    return np.pad(frame_S[:samples], (0, len(frame_S) - samples))


def certain_frames(
    flush: Flush | None, frames: Sequence[FloatArray], until_flush: int, most: int, frame_samples: int
) -> FloatArray | None:
    """Return the next frames of a stream `[F, frame_samples]`, up to `most`, if two or more of them are certain.

    They are those of the `flush` in progress, or of the audio that waits, at most `until_flush`.
    """
    count = min(most, flush.frames_left if flush is not None else min(until_flush, len(frames)))
    if count < 2:
        return None
    if flush is None:
        return np.stack(list(islice(frames, count)))
    silence_FS = np.zeros((count, frame_samples), np.float32)
    if flush.tail is not None:
        silence_FS[0] = flush.tail
    return silence_FS
