"""Simulated rooms: the direct sound first, then reflections; the same rooms every time."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from slipstream.data.augment import WaveAugment
from slipstream.data.rooms import room_bank
from slipstream.errors import BackendError


def test_a_room_begins_with_the_direct_sound_and_adds_reflections() -> None:
    pytest.importorskip("pyroomacoustics")
    rooms = room_bank(3, 24_000)
    assert all(room[0] == 1 for room in rooms)
    assert all(np.square(room[1:]).sum() > 0.1 for room in rooms)
    assert len({len(room) for room in rooms}) == 3
    click = np.zeros(24_000, np.float32)
    click[1000] = 1
    augment = WaveAugment(reverb=1, noise=0, telephone=0, clip=0, gain=0, rooms=3)
    heard = augment(click, 24_000, np.random.default_rng(0))
    assert np.abs(heard[:1000]).max() < 1e-4
    assert heard[1000] == pytest.approx(1, abs=1e-3)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(BackendError, match=r"slipstream-stt\[rooms\]"):
        room_bank(1, 8000)
