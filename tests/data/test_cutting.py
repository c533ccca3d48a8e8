"""Cutting recordings keeps every sample, word and time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slipstream.audio import SAMPLE_RATE, load
from slipstream.data.cutting import cut
from slipstream.data.manifest import Recording
from slipstream.data.wave import write_wave
from slipstream.errors import SlipstreamError
from slipstream.events import Word

LONGEST = 3.0


@pytest.fixture
def long_recording(tmp_path: Path) -> Recording:
    """Twelve seconds and twenty words, with pauses of many widths."""
    rng = np.random.default_rng(0)
    bounds = np.sort(rng.uniform(0.1, 11.9, 40))
    words = tuple(Word(f"w{i}", float(a), float(b)) for i, (a, b) in enumerate(bounds.reshape(20, 2)))
    phones = tuple((f"p{i}", float(a)) for i, (a, _) in enumerate(bounds.reshape(20, 2)))
    samples = rng.uniform(-0.5, 0.5, 12 * SAMPLE_RATE).astype(np.float32)
    write_wave(tmp_path / "long.wav", samples)
    return Recording(tmp_path / "long.wav", " ".join(w.text for w in words), words, phones, dataset="own")


def test_the_pieces_make_up_the_recording(long_recording: Recording, tmp_path: Path) -> None:
    pieces = list(cut(long_recording, tmp_path / "pieces", LONGEST))
    audio = [load(piece.audio) for piece in pieces]
    np.testing.assert_allclose(np.concatenate(audio), load(long_recording.audio), atol=1e-4)
    assert " ".join(piece.text for piece in pieces) == long_recording.text
    assert max(map(len, audio)) <= LONGEST * SAMPLE_RATE
    starts = np.cumsum([0.0, *(len(a) / SAMPLE_RATE for a in audio)])
    moved = [w.start + start for piece, start in zip(pieces, starts, strict=False) for w in piece.words]
    assert moved == pytest.approx([w.start for w in long_recording.words], abs=1e-3)
    phones = [(name, at + start) for piece, start in zip(pieces, starts, strict=False) for name, at in piece.phones]
    assert [name for name, _ in phones] == [name for name, _ in long_recording.phones]
    assert [at for _, at in phones] == pytest.approx([at for _, at in long_recording.phones], abs=1e-3)
    for piece, samples in zip(pieces, audio, strict=True):
        assert piece.seconds == pytest.approx(len(samples) / SAMPLE_RATE)
        assert piece.words[0].start >= 0
        assert piece.words[-1].end <= len(samples) / SAMPLE_RATE


def test_a_short_recording_stays_as_it_is(long_recording: Recording, tmp_path: Path) -> None:
    (piece,) = cut(long_recording, tmp_path / "pieces", 12.0)
    assert piece.audio == long_recording.audio
    assert piece.words == long_recording.words
    assert piece.seconds == pytest.approx(12.0)


def test_words_without_times_cannot_be_cut(long_recording: Recording, tmp_path: Path) -> None:
    untimed = Recording(long_recording.audio, long_recording.text)
    with pytest.raises(SlipstreamError, match="slipstream data align"):
        list(cut(untimed, tmp_path / "pieces", LONGEST))


def test_recordings_with_the_same_name_give_different_pieces(long_recording: Recording, tmp_path: Path) -> None:
    first, second = (list(cut(long_recording, tmp_path / "pieces", LONGEST, number)) for number in (0, 1))
    assert not {piece.audio for piece in first} & {piece.audio for piece in second}
