"""Channels: FFmpeg's downmix, and stereo in opposite phase."""

from __future__ import annotations

import logging
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.audio.sounds import tones, write_encoded, write_wav

from slipstream import audio
from slipstream.audio.channels import Mixer, downmix_weights

STEREO = (0.5, 0.5)


@pytest.mark.parametrize("layout", ["stereo", "2.1", "3.0", "quad", "5.0", "5.1", "5.1(side)", "6.1", "7.1"])
def test_a_mix_is_that_of_ffmpeg(tmp_path: Path, layout: str) -> None:
    channels = av.AudioLayout(layout).nb_channels
    samples = np.random.default_rng(0).uniform(-1, 1, (channels, 24_000)).astype(np.float32)
    path = write_encoded(tmp_path / "a.flac", "flac", samples, 24_000, layout=layout)

    with av.open(str(path)) as container:
        resampler = av.AudioResampler("s16", "mono", 24_000)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    expected = np.concatenate([frame.to_ndarray()[0] for frame in frames]) / 32768

    got = audio.load(path)
    np.testing.assert_allclose(got, expected, atol=3 / 32768)
    assert np.abs(got).max() <= 1


def test_the_weights_of_5_1_are_those_of_the_standard() -> None:
    half = np.sqrt(0.5)
    shares = np.array([half, half, 1.0, 0.0, 0.5, 0.5])  # ATSC A/52, -3 dB for the sides and for the surrounds; no LFE
    np.testing.assert_allclose(downmix_weights("5.1", 6), shares / shares.sum(), atol=1e-6)


def test_channels_without_a_position_have_the_same_share() -> None:
    assert downmix_weights("6 channels", 6) == (1 / 6,) * 6
    assert downmix_weights("ambisonic 1", 4) == (0.25,) * 4


def test_eight_planar_channels_are_read(tmp_path: Path) -> None:
    samples = np.zeros((8, 48_000), np.float32)
    samples[2] = tones(1.0, 48_000)[0]
    path = write_encoded(tmp_path / "film.m4a", "aac", samples, 48_000, layout="7.1")
    pieces = list(audio.decode(path, channels="separate"))
    loud = np.abs(np.concatenate(pieces, axis=1)).max(axis=1)
    assert loud[2] == pytest.approx(0.5, abs=0.05)
    assert np.delete(loud, 2).max() < 0.01


@pytest.mark.parametrize(("gain", "louder"), [(-1.0, 1.0), (-0.5, 1.0), (-2.0, 2.0)])
def test_opposite_phase_is_transcribed_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gain: float, louder: float
) -> None:
    left = tones(2.0, 24_000)[0] / 2
    path = write_wav(tmp_path / "anti.wav", np.stack([left, gain * left]), 24_000)
    with caplog.at_level(logging.WARNING, "slipstream"):
        got = audio.load(path)
    np.testing.assert_allclose(np.abs(got[2400:]), louder * np.abs(left[2400:]), atol=1e-3)
    assert "anti.wav: its channels have opposite phase and cancel out when mixed, for 2.0 s" in caplog.text


def test_opposite_phase_is_found_under_noise_and_lost_at_its_end() -> None:
    rng = np.random.default_rng(0)
    speech = np.concatenate([rng.normal(0, 0.1, 24_000), rng.normal(0, 0.1, 24_000)])
    noise = rng.normal(0, 0.03, (2, 48_000))
    sign = np.repeat([-1.0, 1.0], 24_000)
    mixer = Mixer(STEREO, 24_000)
    got = mixer.push((np.stack([speech, sign * speech]) + noise).astype(np.float32))[0]
    for part in (slice(480, 24_000), slice(28_800, 48_000)):
        assert abs(np.corrcoef(got[part], speech[part])[0, 1]) > 0.9
    assert 1.0 <= mixer.cancelled_seconds < 1.3


def test_normal_stereo_is_averaged() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (2, 24_000)).astype(np.float32)
    samples[:, :6000] = 0
    samples[1, 12_000:] = 0  # a channel may fall silent
    mixer = Mixer(STEREO, 24_000)
    np.testing.assert_array_equal(mixer.push(samples)[0], samples[0] * np.float32(0.5) + samples[1] * np.float32(0.5))
    assert mixer.cancelled_seconds == 0


@given(cuts=st.lists(st.integers(0, 4000), max_size=12), channels=st.sampled_from([1, 2, 6]))
def test_a_mix_does_not_depend_on_the_cuts(cuts: list[int], channels: int) -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(0, 0.1, (channels, 4000)).astype(np.float32)
    if channels == 2:
        samples[1, 1000:2500] = -samples[0, 1000:2500]
    weights = downmix_weights({1: "mono", 2: "stereo", 6: "5.1"}[channels], channels)
    whole, stream = Mixer(weights, 16_000), Mixer(weights, 16_000)

    pieces = [stream.push(chunk) for chunk in np.split(samples, np.sort(cuts), axis=1)]
    got = np.concatenate([*pieces, stream.flush()], axis=1)

    np.testing.assert_array_equal(got, np.concatenate([whole.push(samples), whole.flush()], axis=1))
    assert got.shape == (1, 4000)


def test_a_decision_depends_on_the_past_only() -> None:
    samples = np.random.default_rng(2).normal(0, 0.1, (2, 4800)).astype(np.float32)
    changed = samples.copy()
    changed[1, 2400:] = -changed[0, 2400:]
    first, second = (Mixer(STEREO, 24_000).push(array) for array in (samples, changed))
    np.testing.assert_array_equal(first[:, :2400], second[:, :2400])
