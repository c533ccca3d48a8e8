"""Timestamps: words have the times of players, and only missing audio becomes silence."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
from tests.audio.sounds import tones, write_encoded, write_wav

from slipstream import audio
from slipstream.audio.timeline import Timeline

RATE = audio.SAMPLE_RATE
# Container, codec, sample rate, video codec.
TIMED = [
    ("mp4", "aac", 44_100, "mpeg4"),
    ("mov", "pcm_s16le", 44_100, "mpeg4"),
    ("mkv", "aac", 44_100, "mpeg4"),
    ("mkv", "flac", 44_100, "mpeg4"),
    ("webm", "libopus", 48_000, "libvpx"),
    ("ts", "aac", 44_100, "mpeg2video"),
    ("m2ts", "ac3", 48_000, "mpeg2video"),
    ("mpg", "mp2", 44_100, "mpeg2video"),
    ("flv", "aac", 44_100, "flv"),
    ("asf", "wmav2", 44_100, "mpeg4"),
    ("nut", "aac", 44_100, "mpeg4"),
    ("wtv", "mp2", 44_100, "mpeg2video"),
    ("oga", "flac", 44_100, ""),
    ("opus", "libopus", 48_000, ""),
]
COUNTED = [
    ("wav", "pcm_s16le", 44_100),
    ("aiff", "pcm_s16be", 44_100),
    ("au", "pcm_s16be", 44_100),
    ("caf", "pcm_s16le", 44_100),
    ("w64", "pcm_s16le", 44_100),
    ("voc", "pcm_u8", 22_050),
    ("flac", "flac", 44_100),
    ("wv", "wavpack", 44_100),
    ("tta", "tta", 44_100),
    ("mp3", "libmp3lame", 44_100),
    ("mp2", "mp2", 44_100),
    ("aac", "aac", 44_100),
    ("ac3", "ac3", 48_000),
    ("eac3", "eac3", 48_000),
    ("avi", "libmp3lame", 44_100),
    ("rm", "ac3", 44_100),
]


def written(path: Path, codec: str, rate: int, **how: object) -> Path:
    return write_encoded(path, codec, tones(2.0, rate), rate, **how)


def silences(samples: np.ndarray) -> list[tuple[float, float]]:
    """Begin and length of each silence of at least 40 ms, in seconds."""
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    edges = np.concatenate([[-1], loud, [len(samples)]])
    return [(a / RATE, (b - a) / RATE) for a, b in itertools.pairwise(edges) if b - a > 0.04 * RATE]


@pytest.mark.parametrize(("suffix", "codec", "rate"), [case[:3] for case in TIMED] + COUNTED)
def test_a_clean_file_has_no_gap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, codec: str, rate: int
) -> None:
    path = written(tmp_path / f"clean.{suffix}", codec, rate)
    with caplog.at_level(logging.WARNING, "slipstream"):
        samples = audio.load(path)
    assert len(samples) / RATE == pytest.approx(2.0, abs=0.1)
    assert all(start < 0.05 or start > 1.9 for start, _ in silences(samples))
    assert not caplog.text


@pytest.mark.parametrize("late", [0.06, 0.5])
@pytest.mark.parametrize(("suffix", "codec", "rate", "video"), [case for case in TIMED if case[3]])
def test_a_late_track_starts_late(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, codec: str, rate: int, video: str, late: float
) -> None:
    path = written(tmp_path / f"late.{suffix}", codec, rate, video=video, gap=(0.0, late))
    with caplog.at_level(logging.WARNING, "slipstream"):
        samples = audio.load(path)
    begin = np.flatnonzero(np.abs(samples) > 0.1)[0] / RATE
    encoder_delay = 0.05 if suffix == "asf" else 0.0  # players show it, too: no header of ASF states it
    assert begin == pytest.approx(late + encoder_delay, abs=0.015)
    assert "missing" not in caplog.text
    assert "its header states" not in caplog.text


@pytest.mark.parametrize(("suffix", "codec", "rate"), [case[:3] for case in TIMED if case[0] != "mov"])
def test_a_gap_is_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, codec: str, rate: int) -> None:
    path = written(tmp_path / f"gap.{suffix}", codec, rate, gap=(1.0, 0.5))
    with caplog.at_level(logging.WARNING, "slipstream"):
        samples = audio.load(path)
    assert len(samples) / RATE == pytest.approx(2.5, abs=0.12)
    (silence,) = [(start, length) for start, length in silences(samples) if 0.1 < start < 2.0]
    precision = {"mpg": 0.2, "oga": 0.6}.get(suffix, 0.1)  # one timestamp for each pack or page
    assert silence == (pytest.approx(1.0, abs=precision), pytest.approx(0.5, abs=0.05))
    assert "0.5 s of audio are missing" in caplog.text


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [(s, c, r) for s, c, r, *_ in TIMED + COUNTED if s in {"mkv", "webm", "ts", "m2ts", "mpg", "oga", "opus", "nut"}]
    + [(s, c, r) for s, c, r in COUNTED if s in {"wav", "flac", "mp3", "mp2", "aac", "ac3", "eac3", "avi"}],
)
def test_files_one_after_the_other_follow_without_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, codec: str, rate: int
) -> None:
    once = written(tmp_path / f"once.{suffix}", codec, rate).read_bytes()
    path = tmp_path / f"twice.{suffix}"
    path.write_bytes(once + once)
    with caplog.at_level(logging.WARNING, "slipstream"):
        samples = audio.load(path)
    assert len(samples) / RATE == pytest.approx(4.0, abs=0.2)
    assert all(length < 0.15 for _, length in silences(samples))
    assert "missing" not in caplog.text


@pytest.mark.parametrize("seconds", [300.0, -300.0])
def test_transport_streams_with_other_clocks_follow_without_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    near = written(tmp_path / "near.ts", "aac", 44_100)
    far = written(tmp_path / "far.ts", "aac", 44_100, gap=(0.0, 300.0))
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in ((near, far) if seconds > 0 else (far, near))))
    with caplog.at_level(logging.WARNING, "slipstream"):
        samples = audio.load(path)
    assert len(samples) / RATE == pytest.approx(4.0, abs=0.2)
    assert "timestamps jump at 2." in caplog.text
    assert "its header states" not in caplog.text


@pytest.mark.parametrize(("suffix", "codec"), [("aac", "aac"), ("ts", "aac"), ("mp3", "libmp3lame"), ("ts", "mp2")])
def test_a_change_of_the_sample_rate_inserts_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, codec: str
) -> None:
    parts = [written(tmp_path / f"{rate}.{suffix}", codec, rate).read_bytes() for rate in (22_050, 44_100)]
    path = tmp_path / f"both.{suffix}"
    path.write_bytes(b"".join(parts))
    with caplog.at_level(logging.WARNING, "slipstream"):
        samples = audio.load(path)
    assert len(samples) / RATE == pytest.approx(4.0, abs=0.2)
    assert all(length < 0.15 for _, length in silences(samples))
    assert "missing" not in caplog.text


@pytest.mark.parametrize("rates", [(24_000, 24_000), (16_000, 44_100)])
def test_wav_files_one_after_the_other_are_all_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rates: tuple[int, int]
) -> None:
    parts = [write_wav(tmp_path / f"{n}.wav", tones(1.0, rate), rate).read_bytes() for n, rate in enumerate(rates)]
    path = tmp_path / "both.wav"
    path.write_bytes(b"".join(parts))
    with caplog.at_level(logging.WARNING, "slipstream"):
        samples = audio.load(path)
    expected = [audio.load(tmp_path / f"{n}.wav") for n in range(2)]
    assert len(samples) == 2 * RATE
    np.testing.assert_allclose(samples, np.concatenate(expected), atol=1e-3)
    assert "both.wav: holds 2 WAV files one after the other" in caplog.text


# ------------------------------------------------------------------------------------------------------------ Timeline


def follow(timeline: Timeline, stamps: list[float], seconds: float = 1.0) -> list[float]:
    """The silence before each of some packets of the same length."""
    gaps = []
    for stamp in stamps:
        gaps.append(round(timeline.gap(stamp), 6))
        timeline.advance(stamp, seconds)
    return gaps


def test_time_zero_is_where_the_first_track_starts() -> None:
    assert follow(Timeline(1.4, 10.0), [1.4, 2.4]) == [0.0, 0.0]
    assert follow(Timeline(1.4, 10.0), [1.46, 2.46]) == [0.06, 0.0]
    assert follow(Timeline(1.4, 0.0), [1.46]) == [0.06]


def test_jitter_is_not_a_gap_and_does_not_accumulate() -> None:
    timeline = Timeline(0.0, 10.0)
    assert follow(timeline, [0.0, 1.09, 2.02, 3.11]) == [0.0, 0.0, 0.0, 0.11]
    assert timeline.missing == pytest.approx(0.11)


def test_a_long_gap_depends_on_the_container() -> None:
    assert follow(Timeline(0.0, 3600.0), [0.0, 61.0]) == [0.0, 60.0]
    assert follow(Timeline(0.0, 10.0), [0.0, 61.0, 62.0, 65.0]) == [0.0, 0.0, 0.0, 2.0]
    assert follow(Timeline(0.0, 0.0), [0.0, 5.0]) == [0.0, 0.0]


def test_a_clock_that_starts_again_keeps_later_gaps() -> None:
    timeline = Timeline(0.0, 3600.0)
    assert follow(timeline, [0.0, 1.0, 2.0, 0.0, 1.5]) == [0.0, 0.0, 0.0, 0.0, 0.5]
    assert timeline.jumps == [3.0]


def test_damage_is_silence_of_its_length() -> None:
    timeline = Timeline(0.0, 0.0)
    follow(timeline, [0.0])
    timeline.damage(0.026)
    assert follow(timeline, [1.026]) == [0.026]
    assert timeline.missing == pytest.approx(0.026)
