"""Augmentation of log-mel frames follows its options."""

from __future__ import annotations

import numpy as np
import pytest
from tests.train.world import NO_AUGMENT

from slipstream.data.spectral import FLOOR, SpectralAugment, _reverberate


@pytest.mark.parametrize("direct_db", [0.0, 10.0])
def test_a_room_holds_its_share_of_the_sound_and_dies_away_in_its_time(direct_db: float) -> None:
    dry = np.full((200, 4), -40.0, np.float32)
    dry[50] = 0.0
    wet = _reverberate(dry.copy(), 0.5, direct_db)
    np.testing.assert_allclose(wet[:50], dry[:50], atol=0.7)  # silence has a room too
    assert wet[50] == pytest.approx(np.zeros(4), abs=1e-5)
    assert np.exp(wet[51:]).sum(axis=0) == pytest.approx(np.full(4, 10 ** (-direct_db / 10)), rel=1e-2)
    assert wet[51] - wet[101] == pytest.approx(np.full(4, np.log(1e6)), abs=1e-2)


def test_a_row_without_options_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    row = rng.uniform(FLOOR, 3, (64, 20)).astype(np.float32)
    np.testing.assert_array_equal(NO_AUGMENT.row(row.copy(), 0.0, rng), row)


def test_a_room_does_not_reach_back_in_time() -> None:
    augment = SpectralAugment(reverb=1.0, noise=0.0, band_limit=0.0)
    rows = np.random.default_rng(1).uniform(FLOOR, 3, (2, 100, 20)).astype(np.float32)
    rows[1, :70] = rows[0, :70]
    first, second = (augment.row(row, 0.0, np.random.default_rng(2)) for row in rows)
    np.testing.assert_array_equal(first[:70], second[:70])
    assert (first[70:] != second[70:]).any()
