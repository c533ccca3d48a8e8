"""Raw PCM: the samples of FFmpeg's decoders, wherever the bytes are cut."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.audio.sounds import tones

from slipstream import audio
from slipstream.audio import PcmDecoder, RawFormat
from slipstream.errors import AudioError


@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_s24le", "pcm_f32le", "mulaw", "alaw"])
def test_raw_pcm_equals_ffmpegs_decoder(encoding: Any) -> None:
    codec = av.CodecContext.create({"mulaw": "pcm_mulaw", "alaw": "pcm_alaw"}.get(encoding, encoding), "r")
    codec.sample_rate, codec.layout = 8_000, "mono"
    format = RawFormat(encoding, 8_000)
    numbers = np.random.default_rng(0).permutation(256).astype(np.uint8)
    if encoding == "pcm_f32le":
        data = (numbers.astype("<f4") / 256).tobytes()
    else:
        data = numbers.repeat(1 if format.sample_bytes == 1 else 3)[: 256 * format.sample_bytes].tobytes()
    (frame,) = codec.decode(av.Packet(data))
    array = frame.to_ndarray()
    full_scale = 1.0 if array.dtype == np.float32 else -float(np.iinfo(array.dtype).min)

    np.testing.assert_array_equal(PcmDecoder(format).push(data), (array / full_scale).astype(np.float32))


@given(
    cuts=st.lists(st.integers(0, 50), max_size=20),
    encoding=st.sampled_from(["pcm_s16le", "pcm_s24le", "pcm_f32le", "mulaw"]),
    channels=st.integers(1, 3),
)
def test_raw_pcm_may_be_cut_anywhere(cuts: list[int], encoding: Any, channels: int) -> None:
    format = RawFormat(encoding, 16_000, channels)
    values = np.random.default_rng(1).uniform(0, 1, 50 * channels).astype("<f4")
    data = values.tobytes() if encoding == "pcm_f32le" else values.tobytes()[: 50 * channels * format.sample_bytes]
    whole, pieces = PcmDecoder(format), PcmDecoder(format)
    ends = [*np.minimum(np.cumsum(cuts), len(data)).astype(int).tolist(), len(data)]

    got = [pieces.push(data[start:end]) for start, end in itertools.pairwise([0, *ends])]

    np.testing.assert_array_equal(np.concatenate(got, axis=1), whole.push(data))
    assert pieces.buffered == 0


def test_raw_file_with_declared_format(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = tones(0.5, 24_000, 2)
    path = tmp_path / "a.raw"
    path.write_bytes((samples.T * 32767).astype("<i2").tobytes() + b"\0")
    with caplog.at_level(logging.WARNING, "slipstream"):
        pieces = list(audio.decode(path, raw=RawFormat("pcm_s16le", 24_000, 2), channels="separate"))
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), samples, atol=1e-4)
    assert "middle of a sample" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "pcm_s8"}, "choose one of pcm_s16le, pcm_s24le"),
        ({"sample_rate": "8000"}, "sample_rate=.8000.: expected a whole number of Hz"),
        ({"channels": 0}, "raw audio has at least 1"),
    ],
)
def test_impossible_raw_format(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AudioError, match=message):
        RawFormat(**{"encoding": "pcm_s16le", "sample_rate": 8_000, **fields})
