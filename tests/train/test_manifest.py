"""Manifests give back what was written, and name the line that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slipstream.train.manifest import (
    ManifestError,
    Recording,
    read_manifest,
    validate,
    write_alignment,
    write_manifest,
)
from slipstream.train.prepare import write_wave
from slipstream.types import Word

WORDS = (Word("one", 0.1, 0.4), Word("two", 0.5, 0.9))
PHONES = (("w", 0.1), ("V", 0.2), ("_", 0.4), ("t", 0.5))


def test_a_manifest_gives_back_its_recordings(tmp_path: Path) -> None:
    recordings = [
        Recording(tmp_path / "a" / "1.wav", "one two", WORDS, PHONES, 1.0, "s", "fr", "own", "train"),
        Recording(tmp_path / "2.wav", ""),
    ]
    write_manifest(tmp_path / "all.jsonl", recordings)
    assert list(read_manifest(tmp_path / "all.jsonl")) == recordings


def test_times_beside_the_audio_are_read_where_a_line_has_none(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "1.wav", "one two", WORDS)
    write_alignment(recording)
    (tmp_path / "all.jsonl").write_text(json.dumps({"audio": "1.wav", "text": "one two"}), encoding="utf-8")
    assert list(read_manifest(tmp_path / "all.jsonl")) == [recording]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"audio": "1.wav"}', "line 2: expected an object with the strings audio and text"),
        ('{"audio": "1.wav", "text": "a", "words": [["a", 0]]}', r"line 2: words must be \[text, start, end\]"),
        ('{"audio": "1.wav", "text": "a", "phones": [["a"]]}', r"line 2: .*phones \[name, start\]"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text(f'{{"audio": "0.wav", "text": "a"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ManifestError, match=message):
        list(read_manifest(tmp_path / "all.jsonl"))


def test_validation_counts_what_is_wrong_by_its_kind(tmp_path: Path) -> None:
    write_wave(tmp_path / "good.wav", np.zeros(24_000, np.float32))
    write_wave(tmp_path / "empty.wav", np.zeros(0, np.float32))
    late = Recording(tmp_path / "good.wav", "late", (Word("late", 1.5, 1.6),))
    recordings = [
        Recording(tmp_path / "good.wav", "one two", WORDS),
        Recording(tmp_path / "missing.wav", "one"),
        Recording(tmp_path / "empty.wav", "one"),
        Recording(tmp_path / "good.wav", "?!"),
        late,
    ]
    good, report = validate(recordings, None, "skip")
    assert [(recording.text, recording.seconds) for recording in good] == [("one two", 1.0)]
    assert report.counts() == {"audio": 2, "text": 1, "times": 1}
    with pytest.raises(ManifestError, match=r"'late' from 1\.5 to 1\.6 s in 1\.00 s of audio"):
        validate([late], None, "fail")
