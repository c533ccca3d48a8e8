"""Speech for a GPU machine: packs as Opus of 12 kbit/s, decoded there by another library, and synthesised there."""

from __future__ import annotations

import ctypes.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.train import world
from tools.h100 import speech

from slipstream.data.packs import Clip, Pack, write_pack


def pack(folder: Path, count: int) -> Pack:
    items = []
    for number, (samples, words) in enumerate(world.utterances(count)):
        timed = tuple((word.text, word.start, word.end) for word in words)
        rows = np.round(samples * 32767).astype(np.int16)[:, None]
        items.append((rows, Clip(0, 0, f"text {number}", "en", "chords", "s", timed)))
    write_pack(folder, speech.SAMPLES, items)
    return Pack(folder)


def test_packs_are_carried_in_a_tenth_of_their_size_and_decoded(tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="soundfile is not installed: the GPU machine gets it from wheels.sh")
    plain = pack(tmp_path / "plain", 4)
    (tmp_path / "a.txt").write_text("one two\n")
    speech.carry([tmp_path / "plain"], [tmp_path / "a.txt"], tmp_path / "speech", 1e6)
    small, large = ((tmp_path / name / "rows.bin").stat().st_size for name in ("speech/0", "plain"))
    assert small < large / 10
    assert (tmp_path / "speech" / speech.TEXTS).read_text() == "one two\n"
    seconds = speech.unpack(tmp_path / "speech" / "0", tmp_path / "again", 2)
    again = Pack(tmp_path / "again")
    assert [clip.text for clip in again.clips] == [clip.text for clip in plain.clips]
    assert [clip.words for clip in again.clips] == [clip.words for clip in plain.clips]
    assert seconds == pytest.approx(sum(clip.length for clip in plain.clips) / speech.RATE)
    carried = Pack(tmp_path / "speech" / "0")  # which FFmpeg decodes
    for one, other in zip(carried.clips, again.clips, strict=True):
        theirs, ours = carried.rows(one)[:, 0], again.rows(other)[:, 0]
        # The two libraries round the codec's delay at 24 kHz to different samples.
        assert max(np.corrcoef(theirs, np.roll(ours, shift))[0, 1] for shift in (-1, 0, 1)) > 0.95


def test_no_more_is_carried_than_fits(tmp_path: Path) -> None:
    plain = pack(tmp_path / "plain", 4)
    seconds = [clip.length / speech.RATE for clip in plain.clips]
    speech.carry([tmp_path / "plain"], [], tmp_path / "speech", sum(seconds[:3]) * speech.BIT_RATE / 8 + 2000)
    assert len(Pack(tmp_path / "speech" / "0").clips) == 3


@pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="espeak-ng is not installed")
def test_texts_are_spoken_by_several_processes(tmp_path: Path) -> None:
    seconds = speech.synthesise(["one two", "...", "three four five"], "en", tmp_path / "pack", 2)
    first, second = Pack(tmp_path / "pack").clips  # the text without letters is left out
    assert [word for word, _, _ in (*first.words, *second.words)] == ["one", "two", "three", "four", "five"]
    assert first.phones
    assert 1 < seconds < 10


def test_noise_has_the_shape_of_speech(tmp_path: Path) -> None:
    seconds = speech.noise(3, tmp_path / "pack")
    clips = Pack(tmp_path / "pack").clips
    assert 6 <= seconds <= 24
    assert all(0 < word[1] < clip.length / speech.RATE for clip in clips for word in clip.words[1:])
