"""What every Runner checks before a step: the shapes it was given, the slots it was told, samples that are numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slipstream.errors import AudioError
from slipstream.types import BoolArray, FloatArray


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
