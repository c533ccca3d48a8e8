"""Arrays of samples: scaled to float, or refused with a reason."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from slipstream import audio
from slipstream.audio.arrays import SampleConverter
from slipstream.audio.samples import check_rate
from slipstream.errors import AudioError

HALF = [0.5, -0.5, 0.0]


@pytest.mark.parametrize(
    "samples",
    [
        HALF,
        np.array(HALF, np.float16),
        np.array(HALF, np.float64),
        np.array(HALF, ">f4"),
        np.array([64, -64, 0], np.int8),
        np.array([16384, -16384, 0], np.int16),
        np.array([16384, -16384, 0], ">i2"),
        np.array([1 << 30, -1 << 30, 0], np.int32),
        np.array([192, 64, 128], np.uint8),
        np.array([16384, -16384, 0], np.int32),
        np.array([16384, -16384, 0], ">i4"),
        np.array([16384, -16384, 0], np.int64),
        [16384, -16384, 0],
        (16384, -16384, 0),
    ],
    ids=lambda samples: f"{type(samples).__name__} {getattr(samples, 'dtype', type(samples[0]).__name__)}",
)
def test_every_numeric_type_has_its_scale(samples: Any) -> None:
    got_CS = audio.to_float(samples)
    assert got_CS.dtype == np.float32
    assert got_CS.tolist() == [HALF]


def test_shapes() -> None:
    assert audio.to_float(np.array([[0.5], [-0.5]])).tolist() == [[0.5], [-0.5]]
    assert audio.to_float(np.zeros(0)).shape == audio.to_float([]).shape == (1, 0)
    assert audio.to_float(np.zeros(0, np.int32)).shape == (1, 0)


def test_tensors() -> None:
    torch = pytest.importorskip("torch", reason="pip install 'slipstream-stt[torch]'")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        assert audio.to_float(torch.tensor(HALF, dtype=dtype, requires_grad=True)).tolist() == [HALF]
    assert audio.to_float(torch.tensor([16384, -16384, 0], dtype=torch.int16)).tolist() == [HALF]
    assert audio.to_float(torch.tensor([HALF, HALF])).tolist() == [HALF, HALF]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.float32(0), r"shape \(\)"),
        (np.zeros((2, 2, 2)), "expected .samples. or .channels, samples."),
        (np.zeros((48_000, 2)), "pass its transpose"),
        (np.array([0.0, np.inf]), "sample at index 1 is inf, not a finite number"),
        (np.array([[0.0, 0.0, 0.0], [0.0, 0.0, np.nan]]), "sample at index 2 is nan, not a finite number"),
        (np.array([0.0, 1e300]), "index 1"),
        (np.array([0.0, 20_000.0]), "20000: .* divide 16-bit values by 32768"),
        (np.array([40_000, 0]), "int64 reaches 40000, where 16-bit samples are expected"),
        (np.array(["a"]), "expected floats"),
        (np.array([True]), "audio of type bool"),
        (np.array([1j]), "audio of type complex128"),
        (np.zeros(4, np.uint16), "audio of type uint16"),
        (np.zeros(4, np.uint32), "audio of type uint32"),
        ([[0.0], [0.0, 0.0]], "audio of type list"),
        (None, "audio of type object"),
        ({"array": HALF}, "audio of type object"),
    ],
)
def test_arrays_that_are_not_audio(samples: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.to_float(samples)


def test_the_scale_of_an_int32_stream_follows_its_first_sound(caplog: pytest.LogCaptureFixture) -> None:
    zeros, quiet, loud = (np.full(4, level, np.int32) for level in (0, 16384, 1 << 30))
    narrow = SampleConverter()
    with caplog.at_level(logging.WARNING, "slipstream"):
        assert [narrow.convert(chunk)[0, 0] for chunk in (zeros, quiet, zeros, quiet)] == [0, 0.5, 0, 0.5]
    assert caplog.messages == ["int32 audio with a peak of 16384 is taken as 16-bit samples"]
    assert narrow.convert(np.full(4, 40_000, np.int32))[0, 0] == 40_000 / 32_768
    with caplog.at_level(logging.WARNING, "slipstream"):
        assert [narrow.convert(chunk)[0, 0] for chunk in (loud, quiet)] == [0.5, 16384 / (1 << 31)]
    assert caplog.messages[1:] == ["int32 audio reaches 1073741824: from here on it is taken as 32-bit samples"]
    wide = SampleConverter()
    assert [wide.convert(chunk)[0, 0] for chunk in (zeros, loud, quiet)] == [0, 0.5, 16384 / (1 << 31)]


@pytest.mark.parametrize("rate", [24_000, 24_000.0, np.int32(24_000), np.float32(24_000)])
def test_sample_rates(rate: Any) -> None:
    assert check_rate(rate) == 24_000
    assert type(check_rate(rate)) is int


@pytest.mark.parametrize("rate", ["24000", 0, -24_000, float("nan"), float("inf"), True, None, 24_000.5, 999, 768_001])
def test_invalid_sample_rates(rate: Any) -> None:
    with pytest.raises(AudioError, match="expected a whole number of Hz between 1000 and 768000") as caught:
        check_rate(rate)
    assert repr(rate) in str(caught.value)
