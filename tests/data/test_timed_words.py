"""Word times of other tools: their formats, the words of the recording's text, and texts that two teachers agree on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipstream.data.manifest import ManifestError, Recording
from slipstream.data.timed_words import (
    agreed,
    ctm_words,
    import_times,
    retime,
    textgrid_words,
    whisper_words,
    word_difference,
)
from slipstream.errors import SlipstreamError
from slipstream.events import Word

WHISPER = {
    "text": " Hello, world.",
    "segments": [
        {
            "start": 0.0,
            "end": 1.2,
            "words": [
                {"word": " Hello,", "start": 0.1, "end": 0.5, "probability": 0.9},
                {"word": " world.", "start": 0.6, "end": 1.1, "probability": 0.8},
            ],
        },
    ],
}
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.2
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "speaker - words"
        xmin = 0
        xmax = 1.2
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.5
            text = "hello"
        intervals [3]:
            xmin = 0.6
            xmax = 1.1
            text = "world"
    item [2]:
        class = "IntervalTier"
        name = "speaker - phones"
        xmin = 0
        xmax = 1.2
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = "spn"
        intervals [2]:
            xmin = 0.1
            xmax = 0.5
            text = "h"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.2
<exists>
2
"TextTier"
"events"
0
1.2
1
0.7
"a click"
"IntervalTier"
"words"
0
1.2
2
0.1
0.5
"hello"
0.6
1.1
"a ""quoted"" 5"
"""
CTM = """;; id channel start duration word confidence
a 1 0.60 0.50 world 0.7
a 1 0.10 0.40 hello 0.9
b 1 0.00 0.30 other
a 1 1.10 0.05 <eps>
"""
EXPECTED = [("hello", 0.1, 0.5), ("world", 0.6, 1.1)]


def _rows(words: object) -> list[tuple[str, float, float]]:
    return [(word.text, word.start, word.end) for word in words]  # type: ignore[attr-defined]


def test_whisper_words_have_their_probability() -> None:
    words = whisper_words(WHISPER)
    assert _rows(words) == [("Hello,", 0.1, 0.5), ("world.", 0.6, 1.1)]
    assert [word.confidence for word in words] == [0.9, 0.8]


def test_whisper_output_without_word_times_names_the_option() -> None:
    with pytest.raises(ValueError, match="--word_timestamps True"):
        whisper_words({"segments": [{"start": 0, "end": 1, "text": "hello"}]})


def test_words_and_phones_of_a_long_textgrid() -> None:
    words, phones = textgrid_words(LONG)
    assert _rows(words) == EXPECTED
    assert phones == (("_", 0.0), ("h", 0.1))


def test_a_short_textgrid_with_another_tier_and_quotes() -> None:
    words, phones = textgrid_words(SHORT)
    assert _rows(words) == [("hello", 0.1, 0.5), ('a "quoted" 5', 0.6, 1.1)]
    assert phones == ()


def test_ctm_words_are_in_order_and_by_recording() -> None:
    found = ctm_words(CTM)
    assert _rows(found["a"]) == EXPECTED
    assert [word.confidence for word in found["a"]] == [0.9, 0.7]
    assert _rows(found["b"]) == [("other", 0.0, 0.3)]


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [("whisper", "a.json", json.dumps(WHISPER)), ("textgrid", "a.TextGrid", LONG), ("ctm", "a.ctm", CTM)],
)
def test_times_go_to_the_words_of_the_text(kind: str, name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    recording, shared = import_times(Recording(tmp_path / "a.wav", "Hello \u2014 World!"), tmp_path, kind)
    assert [(w.text, w.start) for w in recording.words if w.text != "\u2014"] == [("Hello", 0.1), ("World!", 0.6)]
    assert " ".join(word.text for word in recording.words) == recording.text
    assert shared == 1.0


def test_utf16_as_praat_writes_it(tmp_path: Path) -> None:
    (tmp_path / "a.TextGrid").write_text(SHORT.replace("hello", "\u00fcber"), encoding="utf-16")
    recording, _ = import_times(Recording(tmp_path / "a.wav", ""), tmp_path, "textgrid")
    assert recording.text == '\u00fcber a "quoted" 5'


def test_a_recording_without_text_gets_that_of_the_import(tmp_path: Path) -> None:
    (tmp_path / "all.ctm").write_text(CTM, encoding="utf-8")
    recording, shared = import_times(Recording(tmp_path / "b.wav", ""), tmp_path / "all.ctm", "ctm")
    assert (recording.text, _rows(recording.words), shared) == ("other", [("other", 0.0, 0.3)], 1.0)


@pytest.mark.parametrize(
    ("name", "content", "text", "message"),
    [
        ("b.json", "{}", "hello", r"a\.json: cannot be read"),
        ("a.json", "{}", "hello", r"a\.json: is not whisper output"),
        ("a.json", "[1]", "hello", "is not whisper output"),
        ("a.json", '{"segments": []}', "hello", "has no timed words of a"),
        ("a.json", json.dumps(WHISPER), "quite another text", "only 0% of the text 'quite another text'"),
    ],
)
def test_recordings_that_cannot_be_imported_are_explained(
    name: str, content: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(SlipstreamError, match=message):
        import_times(Recording(tmp_path / "a.wav", text), tmp_path, "whisper")


def test_a_word_that_is_missing_gets_a_time_between_its_neighbours() -> None:
    timed = [Word("one", 0.0, 0.5), Word("three", 1.0, 1.5), Word("fur", 1.5, 2.0)]
    words, shared = retime("One two three four", timed)
    assert [word.text for word in words] == ["One", "two", "three", "four"]
    assert words[0].start == 0.0
    assert 0.0 < words[1].start < words[2].start == 1.0
    assert words[3].start == 1.5  # another word in its place has its time
    assert shared == pytest.approx(8 / 15)


def test_difference_ignores_case_and_punctuation() -> None:
    assert word_difference("Hello, world.", "hello world") == 0
    assert word_difference("a b c d", "a x c") == 0.5
    assert word_difference("", "a") == 1


def test_recordings_on_which_two_teachers_agree() -> None:
    first = [Recording(Path("a.wav"), "One two."), Recording(Path("b.wav"), "three"), Recording(Path("c.wav"), "four")]
    second = [Recording(Path("a.wav"), "one two"), Recording(Path("b.wav"), "tree")]
    kept, differing = agreed(first, second, 0.1)
    assert [(recording.text, recording.extra) for recording in kept] == [("One two.", {"agreement": 1.0})]
    assert [(recording.text, difference) for recording, difference in differing] == [("three", 1.0)]
    with pytest.raises(ManifestError, match="no audio in common"):
        agreed(first, [Recording(Path("z.wav"), "one")], 0.1)
