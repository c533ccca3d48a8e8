"""Values that cross rooms: words, turns, events, one step's output, and the Runner protocol.

Letters for shapes: B slots, S samples, T frames, K codebooks, D width, H pause horizons, V vocabulary.
All times are seconds of the session's own audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

# A transcript's confidence, a step's probabilities: always float32 on the host.
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

State = Any
"""What a Runner gives from `snapshot`: opaque to everyone else, one slot's whole state."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word and when it was spoken.

    `start`, `end`: seconds, `start <= end`. `confidence`: the product of its tokens' probabilities, in [0, 1].
    """

    text: str
    start: float
    end: float
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of speech between two ends of turn, in seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The session has a slot: its audio is being heard. The first event, and the first again after a restart."""


@dataclass(frozen=True, slots=True)
class PartialWord:
    """A word that is still being written; the next one with the same start replaces it."""

    text: str
    start: float


@dataclass(frozen=True, slots=True)
class OpenWord:
    """A word whose text is whole and whose end is not known yet; its `Word` follows.

    Should the model go on with it after a pad, it comes once more, longer, with the same start.
    """

    text: str
    start: float
    confidence: float


@dataclass(frozen=True, slots=True)
class EndOfTurn:
    """At `time` the speaker was found to have finished; up to the model's delay of text may still follow."""

    time: float


@dataclass(frozen=True, slots=True)
class Flushed:
    """All text of the audio up to `time` is out; getting the part the model still owed took `seconds`."""

    time: float
    seconds: float


@dataclass(frozen=True, slots=True)
class MarkerReached:
    """All text of the audio sent before this marker is out."""

    id: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """At `time` the model's state was made fresh because it had gone mute or round in circles, as `reason` says."""

    time: float
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """One frame of the session's own audio was heard.

    `index`: 1 for the first frame. `pause`: each pause head's probability that no new word comes within its horizon;
    empty for a model without heads. `buffered`: samples received and not yet heard.
    """

    index: int
    pause: tuple[float, ...]
    buffered: int


@dataclass(frozen=True, slots=True)
class Final:
    """The last event: the audio was `duration` seconds long, its last flush took `flush_seconds`."""

    duration: float
    flush_seconds: float


Event: TypeAlias = (
    Ready | PartialWord | OpenWord | Word | EndOfTurn | Turn | Flushed | MarkerReached | Recovered | Step | Final
)
"""What a session tells its listener, in the order in which it happens."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step of a Runner yields, on the host.

    `token_B` int64: the text token of each slot. `logprob_B` float32: its log-probability.
    `pause_BH` float32: for each pause head, the probability that no new word comes within its horizon;
    H is 0 for a model without heads. Rows of slots that were not active hold no meaning.
    """

    token_B: IntArray
    logprob_B: FloatArray
    pause_BH: FloatArray


class Runner(Protocol):
    """The narrow waist: a model on a device, with `slots` independent streams in one batch.

    Everything above a Runner is shared by all backends; everything below it is arithmetic. The text token that
    `step` yields after the n-th audio frame (n = 1, 2, ...) is number n of the slot's text stream; number 0 came
    from the initial tokens before any audio, and is the same for every stream.
    """

    @property
    def frame_samples(self) -> int:
        """Samples in one frame (1920 for Mimi)."""
        ...

    @property
    def frame_rate(self) -> float:
        """Frames a second (12.5 for Mimi)."""
        ...

    @property
    def slots(self) -> int:
        """B, the number of streams; fixed."""
        ...

    @property
    def delay_frames(self) -> int:
        """How many frames the text lags behind the audio."""
        ...

    def reset(self, slots: Sequence[int]) -> None:
        """Make each of `slots` a fresh stream. No other slot changes by a bit."""
        ...

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        """Advance every active slot by one frame of `[B, frame_samples]` samples; the others do not change."""
        ...

    def snapshot(self, slot: int) -> State:
        """Copy one slot's state: later steps do not change the copy."""
        ...

    def restore(self, slot: int, state: State) -> None:
        """Put a state taken by `snapshot`, of this slot or another, into `slot`."""
        ...
