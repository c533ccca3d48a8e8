from __future__ import annotations

import csv
import itertools
import json
import re
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.errors import ConfigError
from slipstream.formats import CUE_LINES, LINE_CHARS, MAX_CUE_SECONDS, MIN_CUE_SECONDS, Transcript, cues
from slipstream.types import Turn, Word


def transcript(words: list[Word], turns: list[Turn] | None = None, duration: float | None = None) -> Transcript:
    end = words[-1].end if words else 0.0
    return Transcript(tuple(words), tuple(turns or []), end + 5 if duration is None else duration, "some/model", 0.5)


def spoken(text: str, start: float = 0.0, seconds: float = 0.3) -> list[Word]:
    return [
        Word(word, start + seconds * number, start + seconds * (number + 1), 0.9)
        for number, word in enumerate(text.split())
    ]


TWO_TURNS = transcript(
    [Word("Ça", 0.08, 0.4, 0.98765), Word("va?", 0.4, 0.8), Word("<Oui> & non.", 2.0, 2.5)],
    [Turn(0.08, 0.8), Turn(2.0, 2.5)],
)


# ------------------------------------------------------------------------------------------------------- formats


def test_text_is_the_words() -> None:
    assert TWO_TURNS.text == "Ça va? <Oui> & non."
    with pytest.raises(FrozenInstanceError):
        TWO_TURNS.model = "other"  # type: ignore[misc]


def test_txt_has_a_line_for_each_turn() -> None:
    assert TWO_TURNS.to_txt() == "Ça va?\n<Oui> & non.\n"


def test_words_outside_any_turn_are_written_too() -> None:
    assert transcript(spoken("one two three"), [Turn(0.3, 0.6)]).to_txt() == "one\ntwo three\n"


def test_json_has_the_published_fields() -> None:
    assert json.loads(TWO_TURNS.to_json()) == {
        "text": "Ça va? <Oui> & non.",
        "words": [
            {"text": "Ça", "start": 0.08, "end": 0.4, "confidence": 0.988},
            {"text": "va?", "start": 0.4, "end": 0.8, "confidence": 1.0},
            {"text": "<Oui> & non.", "start": 2.0, "end": 2.5, "confidence": 1.0},
        ],
        "turns": [{"start": 0.08, "end": 0.8}, {"start": 2.0, "end": 2.5}],
        "duration": 7.5,
        "model": "some/model",
        "delay": 0.5,
    }
    assert "Ça" in TWO_TURNS.to_json()


def test_jsonl_has_a_line_for_each_word() -> None:
    lines = [json.loads(line) for line in TWO_TURNS.to_jsonl().splitlines()]
    assert lines == json.loads(TWO_TURNS.to_json())["words"]


def test_tsv_reads_back_even_with_white_space_in_a_word() -> None:
    odd = transcript([Word("New\tYork\n", 1.0, 2.0, 0.5)])
    assert list(csv.reader(odd.to_tsv().splitlines(), delimiter="\t")) == [
        ["start", "end", "confidence", "text"],
        ["1.000", "2.000", "0.500", "New York"],
    ]


def test_srt() -> None:
    assert TWO_TURNS.to_srt() == (
        "1\n00:00:00,080 --> 00:00:01,080\nÇa va?\n\n2\n00:00:02,000 --> 00:00:03,000\n<Oui> & non.\n"
    )


def test_vtt_escapes_what_would_be_markup() -> None:
    assert TWO_TURNS.to_vtt() == (
        "WEBVTT\n\n00:00:00.080 --> 00:00:01.080\nÇa va?\n\n00:00:02.000 --> 00:00:03.000\n&lt;Oui&gt; &amp; non.\n"
    )


def test_times_past_an_hour() -> None:
    assert "01:01:01,500 --> 01:01:02,500" in transcript([Word("late", 3661.5, 3662.0)]).to_srt()


def test_render_knows_the_formats_by_name() -> None:
    assert TWO_TURNS.render("srt") == TWO_TURNS.to_srt()
    with pytest.raises(ConfigError, match=r"'docx'.*txt, json, jsonl, srt, vtt, tsv"):
        TWO_TURNS.render("docx")  # type: ignore[arg-type]


def test_an_empty_transcript_in_every_format() -> None:
    empty = transcript([])
    assert [empty.to_txt(), empty.to_srt(), empty.to_vtt(), empty.to_jsonl()] == ["", "", "WEBVTT\n", ""]
    assert empty.to_tsv().count("\n") == 1
    assert json.loads(empty.to_json())["words"] == []


# ----------------------------------------------------------------------------------------------------- subtitles


@given(
    st.lists(
        st.tuples(
            st.text("abcdefgh.,?!-", min_size=1, max_size=15),
            st.floats(0, 2.5, allow_nan=False),
            st.floats(0, 1, allow_nan=False),
        ),
        max_size=60,
    ),
    st.sets(st.integers(0, 59)),
)
def test_subtitles_fit_the_screen_keep_every_word_and_do_not_overlap(
    drawn: list[tuple[str, float, float]], ends_of_turn: set[int]
) -> None:
    words, time = [], 0.0
    for text, gap, length in drawn:
        words.append(Word(text, time + gap, time + gap + length))
        time += gap + length
    bounds = [0, *sorted(end for end in ends_of_turn if end < len(words)), len(words)]
    groups = [words[first:last] for first, last in itertools.pairwise(bounds) if first < last]
    made = transcript(words, [Turn(group[0].start, group[-1].end) for group in groups])
    found = cues(made)
    assert " ".join(cue.text.replace("\n", " ") for cue in found) == made.text
    for cue, after in itertools.zip_longest(found, found[1:]):
        lines = cue.text.split("\n")
        assert len(lines) <= CUE_LINES
        assert all(len(line) <= LINE_CHARS for line in lines)
        assert cue.start <= cue.end <= cue.start + MAX_CUE_SECONDS
        if after is not None:
            assert cue.end <= after.start
        free = after.start if after is not None else made.duration
        assert cue.end >= min(cue.start + MIN_CUE_SECONDS, free)


def test_a_cue_ends_with_a_sentence_once_a_line_is_full() -> None:
    text = "Short. This sentence is quite long, but it ends here. And then another begins"
    assert [cue.text.replace("\n", " ") for cue in cues(transcript(spoken(text, seconds=0.2)))] == [
        "Short. This sentence is quite long, but it ends here.",
        "And then another begins",
    ]


def test_a_cue_ends_at_a_pause() -> None:
    words = spoken("before the pause") + spoken("after it", start=3.0)
    assert [cue.text for cue in cues(transcript(words))] == ["before the pause", "after it"]


def test_lines_are_about_equally_long() -> None:
    (cue,) = cues(transcript(spoken("one two three four five six seven eight nine ten", seconds=0.2)))
    assert cue.text == "one two three four five\nsix seven eight nine ten"


def test_a_word_longer_than_a_line_is_cut() -> None:
    (cue,) = cues(transcript([Word("x" * 60, 0, 2)]))
    assert cue.text == "x" * LINE_CHARS + "\n" + "x" * (60 - LINE_CHARS)


def test_the_last_cue_stays_within_the_recording() -> None:
    (cue,) = cues(transcript([Word("end", 9.5, 9.7)], duration=10.0))
    assert cue.end == 10.0


def test_srt_is_well_formed() -> None:
    block = r"\d+\n(\d\d:){2}\d\d,\d{3} --> (\d\d:){2}\d\d,\d{3}\n.+(\n.+)?\n"
    long = transcript(spoken("word " * 300))
    assert re.fullmatch(rf"({block}\n)*{block}", long.to_srt())
