"""Resampler and Framer: the output does not depend on how the stream is cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.audio.sounds import tones

from slipstream import audio
from slipstream.audio import Framer, Resampler
from slipstream.errors import AudioError

RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000]


@given(rate=st.sampled_from(RATES), channels=st.integers(1, 2), seed=st.integers(0, 2**32 - 1))
def test_resampled_stream_does_not_depend_on_its_chunks(rate: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.uniform(-1, 1, (channels, int(rng.integers(1, 3 * rate // 10)))).astype(np.float32)
    cuts = np.sort(rng.integers(0, samples.shape[1] + 1, int(rng.integers(0, 30))))
    whole, stream = Resampler(rate, channels=channels), Resampler(rate, channels=channels)

    pieces = [stream.push(chunk) for chunk in np.split(samples, cuts, axis=1)]
    got = np.concatenate([*pieces, stream.flush()], axis=1)

    np.testing.assert_array_equal(got, np.concatenate([whole.push(samples), whole.flush()], axis=1))
    assert got.shape[1] == pytest.approx(samples.shape[1] * audio.SAMPLE_RATE / rate, abs=1)


@given(
    rates=st.sampled_from([(rate, 24_000) for rate in (4_000, *RATES)] + [(8_000, 16_000), (24_000, 16_000)]),
    channels=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_drained_stream_continues_as_without(rates: tuple[int, int], channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples_CS = rng.uniform(-1, 1, (channels, int(rng.integers(1, rates[0])))).astype(np.float32)
    cuts = np.sort(rng.integers(0, samples_CS.shape[1] + 1, int(rng.integers(1, 20))))
    whole, stream = Resampler(*rates, channels), Resampler(*rates, channels)
    pieces, drained, end = [np.zeros((channels, 0), np.float32)], [], 0

    for chunk_CS in np.split(samples_CS, cuts, axis=1):
        pieces.append(stream.push(chunk_CS))
        end += chunk_CS.shape[1]
        if rng.random() < 0.5:
            start = sum(piece.shape[1] for piece in pieces)
            pieces.append(stream.drain())
            drained.append((start, start + pieces[-1].shape[1], end))
    got_CS = np.concatenate([*pieces, stream.flush()], axis=1)

    expected_CS = np.concatenate([whole.push(samples_CS), whole.flush()], axis=1)
    assert got_CS.shape == expected_CS.shape
    same = np.ones(got_CS.shape[1], bool)
    for start, stop, end in drained:
        same[start:stop] = False
        ended = Resampler(*rates, channels)
        ended_CS = np.concatenate([ended.push(samples_CS[:, :end]), ended.flush()], axis=1)
        assert ended_CS.shape[1] == stop
        np.testing.assert_allclose(got_CS[:, start:stop], ended_CS[:, start:], atol=2e-6)
        known = max(start, stop - math.ceil(72 * max(1.0, rates[1] / rates[0])))  # what depends on no later audio
        np.testing.assert_allclose(got_CS[:, start:known], expected_CS[:, start:known], atol=1e-3)
    np.testing.assert_array_equal(got_CS[:, same], expected_CS[:, same])


def test_the_next_audio_may_be_drained_with_the_rest() -> None:
    for rate in (16_000, 24_000):
        samples_CS = tones(1.0, rate)
        stream, whole = Resampler(rate), Resampler(rate)
        first_CS = stream.push(samples_CS[:, :8000])
        drained_CS = stream.drain(samples_CS[:, 8000:9000])
        rest_CS = [stream.push(samples_CS[:, 8000:]), stream.flush()]
        got_CS = np.concatenate([first_CS, drained_CS, *rest_CS], axis=1)
        assert first_CS.shape[1] + drained_CS.shape[1] == 9000 * audio.SAMPLE_RATE // rate
        np.testing.assert_allclose(
            got_CS, np.concatenate([whole.push(samples_CS), whole.flush()], axis=1), atol=0.3 if rate < 24_000 else 0
        )


@pytest.mark.parametrize("rate", RATES)
def test_resampling_keeps_the_tone_and_its_phase(rate: int) -> None:
    resampler = Resampler(rate)
    got = np.concatenate([resampler.push(tones(1.0, rate)), resampler.flush()], axis=1)
    np.testing.assert_allclose(got[:, 2400:-2400], tones(1.0, 24_000)[:, 2400:-2400], atol=1e-3)


def test_a_live_stream_is_not_held_back() -> None:
    resampler, received = Resampler(8_000), 0
    for block in np.split(tones(2.0, 8_000), 100, axis=1):
        received += resampler.push(block).shape[1]
    assert 2.0 - received / audio.SAMPLE_RATE < 0.1


@pytest.mark.parametrize("rate", [0, -8_000, 10**9])
def test_impossible_rate(rate: int) -> None:
    with pytest.raises(AudioError, match="between 1000 and 768000"):
        Resampler(rate)


@given(chunks=st.lists(st.integers(0, 40), max_size=20), frame_samples=st.integers(1, 17))
def test_frames_are_the_stream_and_then_zeros(chunks: list[int], frame_samples: int) -> None:
    stream = np.arange(1, sum(chunks) + 1, dtype=np.float32)
    framer = Framer(frame_samples)

    frames = [framer.push(chunk) for chunk in np.split(stream, np.cumsum(chunks))]
    waiting = framer.buffered
    last, real = framer.flush()

    assert all(frame.shape[1] == frame_samples for frame in frames)
    assert real == waiting == len(stream) % frame_samples
    assert len(last) == (1 if real else 0)
    out = np.concatenate([*frames, last]).ravel()
    np.testing.assert_array_equal(out[: len(stream)], stream)
    assert not out[len(stream) :].any()
    assert framer.buffered == 0


def test_framer_keeps_its_own_copy() -> None:
    framer, block = Framer(4), np.ones(3, np.float32)
    framer.push(block)
    block[:] = 9
    np.testing.assert_array_equal(framer.push(np.ones(1, np.float32)), np.ones((1, 4)))
