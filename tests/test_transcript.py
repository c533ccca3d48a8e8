from __future__ import annotations

import csv
import json
from dataclasses import FrozenInstanceError

import pytest

from slipstream.errors import ConfigError
from slipstream.events import Alternative, Final, PartialWord, Ready, Turn, Word
from slipstream.subtitles import SubtitleLayout
from slipstream.transcript import Transcript, TranscriptBuilder, likely_texts


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


# ------------------------------------------------------------------------------------------------ segments, builder


def test_segments_are_the_words_of_each_turn() -> None:
    assert [(one.text, one.start, one.end) for one in TWO_TURNS.segments] == [
        ("Ça va?", 0.08, 0.8),
        ("<Oui> & non.", 2.0, 2.5),
    ]
    assert transcript(spoken("no turns yet")).segments[0].text == "no turns yet"
    assert transcript([]).segments == ()


def test_a_builder_makes_a_transcript_of_events() -> None:
    builder = TranscriptBuilder()
    for event in (Ready(), PartialWord("o", 0.5), Word("one", 0.5, 0.9), Turn(0.5, 0.9), Final(2.0, 0.1)):
        builder.add(event)
    assert builder.build("small", 0.5) == Transcript((Word("one", 0.5, 0.9),), (Turn(0.5, 0.9),), 2.0, "small", 0.5)


def test_a_builder_takes_the_given_duration_when_the_stream_broke_off() -> None:
    builder = TranscriptBuilder()
    builder.add(Word("one", 0.5, 0.9))
    assert builder.build("small", 0.5, duration=1.28).duration == 1.28


# -------------------------------------------------------------------------------------------------- likely texts


def test_likely_texts_are_the_best_combinations_of_the_alternatives() -> None:
    words = [
        Word("a", 0.0, 0.2, 0.9),
        Word("bear", 0.2, 0.5, 0.8, alternatives=(Alternative("bare", 0.3), Alternative("pear", 0.2))),
        Word("lives", 0.5, 0.8, 0.6, alternatives=(Alternative("leaves", 0.4),)),
    ]
    every = likely_texts(words, 10)
    assert [" ".join(word.text for word in text) for text in every] == [
        "a bear lives",  # 0.5 x 0.6
        "a bear leaves",  # 0.5 x 0.4
        "a bare lives",  # 0.3 x 0.6
        "a bare leaves",  # 0.3 x 0.4 and 0.2 x 0.6: in the order of the words
        "a pear lives",
        "a pear leaves",
    ]
    assert every[0] == tuple(words)
    assert every[2][1] == Word("bare", 0.2, 0.5, pytest.approx(0.8 * 0.3 / 0.5))
    assert likely_texts(words, 2) == every[:2]
    assert likely_texts(words, 1) == every[:1]


def test_likely_texts_of_words_without_alternatives_are_the_words() -> None:
    words = spoken("no doubt at all")
    assert likely_texts(words, 5) == [tuple(words)]
    assert likely_texts([], 5) == [()]


# ------------------------------------------------------------------------------------------------------- formats


def test_text_is_the_words() -> None:
    assert TWO_TURNS.text == "Ça va? <Oui> & non."
    with pytest.raises(FrozenInstanceError):
        TWO_TURNS.model = "other"  # type: ignore[misc]


def test_txt_has_a_line_for_each_turn() -> None:
    assert TWO_TURNS.to_txt() == "Ça va?\n<Oui> & non.\n"


def test_words_outside_any_turn_are_written_too() -> None:
    assert transcript(spoken("one two three"), [Turn(0.3, 0.6)]).to_txt() == "one\ntwo three\n"


def test_json_has_languages_and_omissions_if_they_are_known() -> None:
    words = (Word("oui", 0.0, 1.0, 1.0, 0.25, "fr", 0.75), Word("no", 1.0, 2.0, 1.0, 0.0, "en", 0.5))
    transcript = Transcript((*words, words[0]), (Turn(0.0, 2.0, "fr", 0.6),), 2.0, "m", 0.5)
    body = json.loads(transcript.to_json())
    assert body["languages"] == ["fr", "en"]
    assert body["words"][0] == {
        **{"text": "oui", "start": 0.0, "end": 1.0, "confidence": 1.0},
        **{"omission": 0.25, "language": "fr", "language_confidence": 0.75},
    }
    assert "omission" not in body["words"][1]
    assert body["turns"] == [{"start": 0.0, "end": 2.0, "language": "fr", "language_confidence": 0.6}]


def test_json_has_the_alternatives_of_a_word() -> None:
    word = Word("bear", 0.0, 1.0, alternatives=(Alternative("pear", 0.12345),))
    body = json.loads(Transcript((word,), (), 1.0, "m", 0.5).to_jsonl())
    assert body["alternatives"] == [{"text": "pear", "confidence": 0.123}]


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


def test_subtitles_in_a_layout() -> None:
    made = transcript(spoken("one two three four", seconds=1.0))
    assert made.to_srt(max_words=2) == (
        "1\n00:00:00,000 --> 00:00:02,000\none two\n\n2\n00:00:02,000 --> 00:00:04,000\nthree four\n"
    )
    assert made.to_vtt(max_line_width=9, max_line_count=1) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\none two\n\n00:00:02.000 --> 00:00:03.000\nthree\n\n"
        "00:00:03.000 --> 00:00:04.000\nfour\n"
    )
    assert made.render("srt", SubtitleLayout(max_words=2)) == made.to_srt(max_words=2)
    assert made.render("txt", SubtitleLayout(max_words=2)) == made.to_txt()
