"""The slots of an engine whose sessions are in other processes."""

from __future__ import annotations

import numpy as np

from slipstream.engine.remote.slots import Slots
from slipstream.engine.scheduler import HOLD_SECONDS


def test_frames_do_not_gather_while_a_session_flushes() -> None:
    slots = Slots(2)
    slots.admit(0, 1)
    slots.admit(0, 1)
    slots.add(np.array([0]), np.array([False]), 1.0)
    assert slots.patient(1.0)
    slots.take(1.0)
    assert slots.patient(1.0)
    slots.add(np.array([1]), np.array([True]), 2.0)
    slots.take(2.0)
    assert not slots.patient(2.0 + HOLD_SECONDS / 2)
    assert slots.patient(2.0 + 2 * HOLD_SECONDS)
