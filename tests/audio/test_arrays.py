"""Arrays of samples: scaled to float, or refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from slipstream import audio
from slipstream.errors import AudioError


def test_arrays_become_float_channels_first() -> None:
    np.testing.assert_array_equal(audio.to_float(np.array([-32768, 16384], np.int16)), [[-1.0, 0.5]])
    np.testing.assert_array_equal(audio.to_float(np.array([[0.5], [-0.5]])), [[0.5], [-0.5]])
    assert audio.to_float(np.zeros(3)).dtype == np.float32
    assert audio.to_float(np.zeros(0)).shape == (1, 0)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 2, 2)), "expected .samples. or .channels, samples."),
        (np.zeros((48_000, 2)), "pass its transpose"),
        (np.array([0.0, np.inf]), "index 1 is not a finite number"),
        (np.array([0.0, 20_000.0]), "divide 16-bit values by 32768"),
        (np.array(["a"]), "expected floats"),
        (np.zeros(4, np.uint8), "expected floats"),
    ],
)
def test_arrays_that_are_not_audio(samples: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.to_float(samples)


def test_64_bit_samples_do_not_say_their_full_scale() -> None:
    with pytest.raises(AudioError, match="pass 16-bit samples as int16"):
        audio.to_float(np.array([1000, -2000]))
    assert audio.to_float(np.array([16384], np.int16)).tolist() == [[0.5]]
