"""Manifests: reading, writing and validation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from slipstream.data.manifest import (
    ManifestError,
    Recording,
    add_to_manifest,
    matching,
    read_lines,
    read_manifest,
    validate,
    write_alignment,
    write_manifest,
)
from slipstream.data.tokenizer import train_tokenizer
from slipstream.data.wave import write_wave
from slipstream.events import Word
from slipstream.model.text import Tokenizer

WORDS = (Word("one", 0.1, 0.4), Word("two", 0.5, 0.9))
PHONES = (("w", 0.1), ("V", 0.2), ("_", 0.4), ("t", 0.5))


def test_a_written_manifest_is_read_back(tmp_path: Path) -> None:
    recordings = [
        Recording(tmp_path / "a" / "1.wav", "one two", WORDS, PHONES, 1.0, "s", "fr", "own", "train"),
        Recording(tmp_path / "2.wav", ""),
    ]
    write_manifest(tmp_path / "all.jsonl", recordings)
    assert list(read_manifest(tmp_path / "all.jsonl")) == recordings


def test_null_is_like_a_missing_key(tmp_path: Path) -> None:
    line = {"audio": "1.wav", "text": "one", "words": None, "seconds": None, "speaker": None, "lang": None}
    (tmp_path / "all.jsonl").write_text(json.dumps(line), encoding="utf-8")
    assert list(read_manifest(tmp_path / "all.jsonl")) == [Recording(tmp_path / "1.wav", "one")]


def test_times_next_to_the_audio_are_read_for_a_line_without_words(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "1.wav", "one two", WORDS)
    write_alignment(recording)
    (tmp_path / "all.jsonl").write_text(json.dumps({"audio": "1.wav", "text": "one two"}), encoding="utf-8")
    assert list(read_manifest(tmp_path / "all.jsonl")) == [recording]


def test_unknown_keys_are_kept_when_a_manifest_is_rewritten(tmp_path: Path) -> None:
    line = {"audio": "1.wav", "text": "one", "lang": "en", "licence": "CC0", "source": {"id": 7, "tags": ["a"]}}
    (tmp_path / "all.jsonl").write_text(json.dumps(line), encoding="utf-8")
    add_to_manifest(tmp_path / "all.jsonl", [Recording(tmp_path / "2.wav", "two")])
    first, second = map(json.loads, (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines())
    assert first == line
    assert second == {"audio": "2.wav", "text": "two", "lang": "en"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"audio": "1.wav"}', "line 2: expected an object with the strings audio and text"),
        (
            '{"audio": "1.wav", "text": "a", "words": [["a", 0]]}',
            r'line 2: words must be a list of \[text, .*, not \["a", 0\]',
        ),
        (
            '{"audio": "1.wav", "text": "a", "phones": [["a"]]}',
            r'line 2: phones must be a list of \[name, .*, not \["a"\]',
        ),
        ('{"audio": "1.wav", "text": "a", "speaker": 5}', "line 2: speaker must be a string, or null, not 5"),
        ('{"audio": "1.wav", "text": "a", "lang": []}', r"line 2: lang must be a string, or null, not \[\]"),
        ('{"audio": "1.wav", "text": "a", "seconds": "3"}', 'line 2: seconds must be a number .*, not "3"'),
        ('{"audio": "1.wav", "text": "a", "seconds": NaN}', "line 2: seconds must be a number .*, not NaN"),
        ('{"audio": "1.wav", "text": "a", "seconds": true}', "line 2: seconds must be a number .*, not true"),
    ],
)
def test_an_invalid_line_is_reported_with_its_number(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text(f'{{"audio": "0.wav", "text": "a"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ManifestError, match=message):
        list(read_manifest(tmp_path / "all.jsonl"))


def test_a_manifest_is_utf_8_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    line = '{"audio": "0.wav", "text": "\u00e9t\u00e9 \u2028"}\r\n'
    (tmp_path / "marked.jsonl").write_text(line, encoding="utf-8-sig")
    assert [recording.text for recording in read_manifest(tmp_path / "marked.jsonl")] == ["\u00e9t\u00e9 \u2028"]
    (tmp_path / "latin.jsonl").write_bytes(b"\n" + line.replace("\u2028", "").encode("latin-1"))
    with pytest.raises(ManifestError, match=r"latin\.jsonl, line 2: not UTF-8"):
        list(read_manifest(tmp_path / "latin.jsonl"))


@pytest.mark.parametrize("content", ['{"id": 7}', "[1, 2]"])
def test_a_json_file_without_alignments_is_ignored(content: str, tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(content)
    (tmp_path / "all.jsonl").write_text('{"audio": "1.wav", "text": "one"}')
    assert list(read_manifest(tmp_path / "all.jsonl")) == [Recording(tmp_path / "1.wav", "one")]


@pytest.mark.parametrize("content", ['{"alignments": [["one", 0.1]]}', '{"alignments": null}', '{"alignments": ['])
def test_invalid_times_next_to_the_audio_are_reported_with_their_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(content)
    (tmp_path / "all.jsonl").write_text('{"audio": "1.wav", "text": "one"}')
    with pytest.raises(ManifestError, match=r"all\.jsonl, line 1: \S*1\.json, next to the audio"):
        list(read_manifest(tmp_path / "all.jsonl"))


def test_added_recordings_replace_those_of_the_same_audio(tmp_path: Path) -> None:
    first, second = Recording(tmp_path / "1.wav", "one"), Recording(tmp_path / "2.wav", "two")
    again = Recording(tmp_path / "1.wav", "uno")
    add_to_manifest(tmp_path / "all.jsonl", [first, second])
    add_to_manifest(tmp_path / "all.jsonl", [again])
    assert list(read_manifest(tmp_path / "all.jsonl")) == [second, again]


def test_a_selection_without_a_match_lists_the_available_values(tmp_path: Path) -> None:
    recordings = [Recording(tmp_path / "1.wav", "one", dataset=d, split=s) for d, s in ("ax", "by")]
    recordings.append(Recording(tmp_path / "1.wav", "one", dataset="b"))
    assert list(matching(recordings, "m", dataset="b", split="y")) == recordings[1:2]
    assert list(matching(recordings, "m")) == recordings
    with pytest.raises(ManifestError, match=r"m: no recording is of split 'z'; there are \(none\), x, y"):
        list(matching(recordings, "m", split="z"))
    with pytest.raises(ManifestError, match=r"of dataset/split 'a/y'; there are a/x, b/\(none\), b/y"):
        list(matching(recordings, "m", dataset="a", split="y"))
    with pytest.raises(ManifestError, match="m: has no recordings"):
        list(matching([], "m", split="z"))


def test_validation_counts_problems_by_kind(tmp_path: Path) -> None:
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


def test_invalid_lines_are_counted_with_other_problems(tmp_path: Path) -> None:
    write_wave(tmp_path / "good.wav", np.zeros(24_000, np.float32))
    good = '{"audio": "good.wav", "text": "one"}'
    (tmp_path / "all.jsonl").write_text(
        "\n".join(["{", good, '{"audio": "good.wav"}', '{"audio": "no.wav", "text": ""}'])
    )
    kept, report = validate(read_lines(tmp_path / "all.jsonl"), None, "skip")
    assert [recording.text for recording in kept] == ["one"]
    assert report.counts() == {"line": 2, "audio": 1}
    messages = [message for _, message in report.problems]
    assert [f"all.jsonl, line {n}: " in message for n, message in zip((1, 3, 4), messages, strict=True)] == [True] * 3
    assert messages[2].count("no.wav") == 1
    with pytest.raises(ManifestError, match="line 1: not JSON"):
        validate(read_lines(tmp_path / "all.jsonl"), None, "fail")


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ((Word("one", 0.1, 0.4), Word("two", 0.5, 1.05)), None, ""),  # an aligner's frame may end after the audio
        ((Word("One,", 0.1, 0.4), Word("'two!'", 0.4, 0.9)), None, ""),
        ((Word("one", 0.1, 0.4), Word("two", 0.5, 1.2)), "times", "'two' from 0.5 to 1.2 s in 1.00 s"),
        ((Word("one", 0.5, 0.9), Word("two", 0.4, 0.9)), "times", "'two' at 0.4 s comes after 'one' at 0.5 s"),
        ((Word("one", math.nan, 0.4), Word("two", 0.5, 0.9)), "times", "'one' from nan to 0.4 s"),
        ((Word("one", 0.1, math.inf), Word("two", 0.5, 0.9)), "times", "'one' from 0.1 to inf s"),
        ((Word("one", 0.1, 0.4), Word("ten", 0.5, 0.9)), "words", "'oneten' in the words, 'onetwo' in the text"),
        ((Word("one", 0.1, 0.4),), "words", "'one' in the words, 'onetwo' in the text"),
    ],
)
def test_words_match_the_text_and_are_in_order_within_the_audio(
    words: tuple[Word, ...], kind: str | None, message: str, tmp_path: Path
) -> None:
    write_wave(tmp_path / "good.wav", np.zeros(24_000, np.float32))
    _, report = validate([Recording(tmp_path / "good.wav", "one two", words)], None, "skip")
    assert list(report.counts()) == ([kind] if kind else [])
    assert all(message in problem for _, problem in report.problems)


def test_a_vocabulary_that_omits_many_letters_is_refused(tmp_path: Path) -> None:
    train_tokenizer(["guten tag"] * 30, tmp_path / "a.model", 30, hard_limit=False)
    write_wave(tmp_path / "a.wav", np.zeros(24_000, np.float32))
    tokenizer = Tokenizer(tmp_path / "a.model")
    assert validate([Recording(tmp_path / "a.wav", "guten tag")], tokenizer, "skip")[1].good == 1
    with pytest.raises(ManifestError, match="omits 50% of the letters of the texts in 'en', such as"):
        validate([Recording(tmp_path / "a.wav", "guten жжжжж")], tokenizer, "skip")


def test_a_recording_without_text_is_valid(tmp_path: Path) -> None:
    write_wave(tmp_path / "good.wav", np.zeros(24_000, np.float32))
    _, report = validate([Recording(tmp_path / "good.wav", text) for text in ("", "one", "...")], None, "skip")
    assert (report.good, report.wordless, report.counts()) == (2, 1, {"text": 1})
