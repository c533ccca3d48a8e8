"""The `Runner` interface, a step's output, and the checks that every Runner makes before a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.errors import AudioError

State = Any
"""What a Runner gives from `snapshot`: opaque to everyone else, one slot's whole state."""


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


def check_slots(slots: Sequence[int], count: int) -> None:
    """Raise `ValueError` for a slot that a runner of `count` slots does not have."""
    for slot in slots:
        if not 0 <= slot < count:
            raise ValueError(f"slot {slot}: this runner has slots 0 to {count - 1}")


def check_shapes(pcm_BS: FloatArray, active_B: BoolArray, slots: int, frame_samples: int) -> None:
    """Raise `ValueError` for a step of other shapes than `[slots, frame_samples]` and `[slots]`."""
    if pcm_BS.shape != (slots, frame_samples) or active_B.shape != (slots,):
        raise ValueError(
            f"expected samples [{slots}, {frame_samples}] and active [{slots}], "
            f"got {list(pcm_BS.shape)} and {list(active_B.shape)}"
        )


def check_finite(pcm_RS: FloatArray, slots: Sequence[int]) -> None:
    """Raise `AudioError` when a row's samples are not finite: they would stay in its slot's state for ever.

    `slots`: for each row, the slot to name.
    """
    bad = np.flatnonzero(~np.isfinite(pcm_RS).all(axis=1)).tolist()
    if bad:
        raise AudioError(f"samples of slot {[slots[row] for row in bad]} are not finite numbers")


def heard(pcm_BS: FloatArray, active_B: BoolArray, slots: int, frame_samples: int) -> FloatArray:
    """The samples of a step with silence in place of inactive slots, whose rows may hold anything.

    Silence keeps what those slots write into their rings finite. Raises as `check_shapes` and `check_finite` do.
    """
    check_shapes(pcm_BS, active_B, slots, frame_samples)
    heard_BS = np.where(active_B[:, None], pcm_BS, np.float32(0))
    check_finite(heard_BS, range(slots))
    return heard_BS
