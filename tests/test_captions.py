"""Captions that roll up, and their segments and playlist."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from tests.fakes import FRAME_RATE, ScriptRunner, drive, new_session, random_chunks, speech, words_of

from slipstream.captions import HOLD_SECONDS, SETTLE_SECONDS, CaptionSegments, MediaPlaylist, RollUp, Segment
from slipstream.errors import ConfigError
from slipstream.events import Event, Final, OpenWord, Recovered, Step, Word
from slipstream.subtitles import MIN_CUE_SECONDS, Cue, SubtitleLayout

LAYOUT = SubtitleLayout(32, 2)
MODEL_DELAY = 0.48
LIVE = MODEL_DELAY + SETTLE_SECONDS


def shown_words(cues: list[Cue]) -> list[tuple[str, float]]:
    """Replay the screen: each word with the time when it appeared. Fails if text that was shown is changed."""
    words: list[tuple[str, float]] = []
    before: list[str] = []
    end = 0.0
    for cue in cues:
        assert end <= cue.start < cue.end
        lines = cue.text.split("\n")
        if cue.start > end + 0.001:
            before = []  # erased
        old = before[-1] if before else ""
        grows = lines[:-1] == before[:-1] and f"{lines[-1]} ".startswith(f"{old} ")
        # Otherwise the last line became the first, perhaps with a word that appears at the same time.
        text = lines[-1] if grows else " ".join(lines)
        assert not before or f"{text} ".startswith(f"{old} "), "a line that was shown is changed"
        words += [(word, cue.start) for word in text[len(old) :].split()]
        before, end = lines, cue.end
    return words


def segments_of(events: list[Event], **options: float) -> list[tuple[Segment, float]]:
    """The segments of a stream, each with the position of the audio when it was complete."""
    captions = CaptionSegments(MODEL_DELAY, FRAME_RATE, **options)
    return [(segment, captions.position) for event in events for segment in captions.add(event)]


@given(
    seed=st.integers(0, 1000),
    delay=st.sampled_from([0.0, 0.3, LIVE, 5.0]),
    seconds=st.sampled_from([1.0, 2.5, 6.0]),
    typical=st.sampled_from([300.0, 5000.0, 60_000.0]),
)
def test_every_word_appears_once_a_constant_delay_after_it_is_spoken(
    seed: int, delay: float, seconds: float, typical: float
) -> None:
    runner, audio_S = ScriptRunner(), speech(seed, words=20)
    session = new_session(runner, partials=True, steps=True)
    events = drive(session, runner, random_chunks(audio_S, np.random.default_rng(seed), typical))
    words = words_of(events)
    found = segments_of(events, delay=delay, seconds=seconds)
    segments = [segment for segment, _ in found]

    assert [segment.number for segment in segments] == list(range(len(segments)))
    ends = [segment.end for segment in segments]
    assert [segment.start for segment in segments] == [0.0, *ends[:-1]]
    assert all(segment.duration == pytest.approx(seconds) for segment in segments[:-1])
    last = max(words[-1].end, words[-1].start + MIN_CUE_SECONDS) + delay
    assert ends[-1] == pytest.approx(max(len(audio_S) / 24_000, last))
    cues = [cue for segment in segments for cue in segment.cues]
    assert all(segment.start <= cue.start < cue.end <= segment.end for segment in segments for cue in segment.cues)
    assert all(len(lines) <= 2 and max(map(cell_len, lines)) <= 32 for cue in cues for lines in [cue.text.split("\n")])

    expected = [(word.text, pytest.approx(word.start + delay, abs=0.002)) for word in words]
    assert shown_words(cues) == expected
    longest = max(word.end - word.start for word in words)
    for segment, position in found[:-1]:
        assert position <= max(segment.end, segment.end + LIVE - delay) + longest + 0.16


def test_words_without_a_gap_in_time_are_all_shown() -> None:
    captions = CaptionSegments(MODEL_DELAY, FRAME_RATE)
    words = [Word(f"number-{index:02}-of-many", 1.0, 1.0) for index in range(12)]
    cues = [cue for event in [*words, Final(20.0, 0.0)] for segment in captions.add(event) for cue in segment.cues]
    assert [text for text, _ in shown_words(cues)] == [word.text for word in words]


def test_a_word_that_comes_after_its_segment_appears_in_the_next_one() -> None:
    captions = CaptionSegments(MODEL_DELAY, FRAME_RATE, seconds=2.0)
    events: list[Event] = [Word("early", 0.5, 0.9), Step(100, (), 0), Word("late", 1.0, 1.4), Final(8.0, 0.0)]
    segments = [segment for event in events for segment in captions.add(event)]
    assert [cue.text for cue in segments[0].cues] == ["early"]
    assert shown_words([cue for segment in segments for cue in segment.cues]) == [("early", 0.5), ("late", 6.0)]


def test_a_segment_waits_for_the_word_that_is_being_spoken() -> None:
    captions = CaptionSegments(MODEL_DELAY, FRAME_RATE, seconds=2.0)
    assert list(captions.add(OpenWord("hello", 1.9, 0.9))) == []
    assert list(captions.add(Step(75, (), 0))) == []
    assert list(captions.add(Word("hello", 1.9, 4.0))) == []
    assert [segment.end for segment in captions.add(Step(76, (), 0))] == [2.0, 4.0]
    assert list(captions.add(OpenWord("lost", 4.5, 0.9))) == []
    assert list(captions.add(Recovered(5.0, "mute"))) == []
    assert [segment.end for segment in captions.add(Step(100, (), 0))] == [6.0]


def roll_up(
    *words: tuple[str, float, float], delay: float = 0.0, until: float = 60.0
) -> list[tuple[str, float, float]]:
    lines = RollUp(LAYOUT, delay)
    for text, start, end in words:
        lines.add(Word(text, start, end))
    return [(cue.text, cue.start, cue.end) for cue in lines.take(until)]


def test_a_pause_begins_a_line_and_silence_erases_the_captions() -> None:
    shown = roll_up(("one", 1.0, 1.3), ("two", 1.5, 1.8), ("three", 3.0, 3.4), ("four", 20.0, 20.4), delay=0.5)
    assert shown == [
        ("one", 1.5, 2.0),
        ("one two", 2.0, 3.5),
        ("one two\nthree", 3.5, 4.5 + HOLD_SECONDS),
        ("four", 20.5, 21.5 + HOLD_SECONDS),
    ]


def test_a_word_that_is_too_wide_is_cut_and_wide_letters_take_two_columns() -> None:
    assert [text for text, _, _ in roll_up(("a" * 70, 1.0, 4.0))] == [
        "a" * 32,
        f"{'a' * 32}\n{'a' * 32}",
        f"{'a' * 32}\n{'a' * 6}",
    ]
    assert roll_up(("字" * 16, 1.0, 2.0), ("字", 2.0, 2.4))[1][0] == f"{'字' * 16}\n字"


def test_captions_of_one_line() -> None:
    lines = RollUp(SubtitleLayout(10, 1), 0.0)
    for index, text in enumerate(["seven", "and", "eight", "more"]):
        lines.add(Word(text, index, index + 0.9))
    assert [cue.text for cue in lines.take(3.5)] == ["seven", "seven and", "eight", "eight more"]


def test_a_segment_in_webvtt() -> None:
    segment = Segment(1, 6.0, 12.0, (Cue("a <b>\n& c", 6.5, 7.25),))
    assert segment.to_vtt(1.4) == (
        "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:126000,LOCAL:00:00:00.000\n"
        "\n00:00:06.500 --> 00:00:07.250 position:10% align:start\na &lt;b&gt;\n&amp; c\n\n"
    )
    assert "MPEGTS:0," in Segment(0, 0.0, 6.0, ()).to_vtt((1 << 33) / 90_000), "timestamps have 33 bits"


def test_playlists() -> None:
    playlist = MediaPlaylist(2.5)
    assert playlist.render().splitlines() == [
        "#EXTM3U",
        "#EXT-X-VERSION:3",
        "#EXT-X-TARGETDURATION:3",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
    ]
    assert playlist.add(Segment(0, 0.0, 2.5, ()), "0.vtt") == ()
    playlist.ended = True
    assert playlist.render().splitlines()[5:] == ["#EXTINF:2.500,", "0.vtt", "#EXT-X-ENDLIST"]

    window = MediaPlaylist(2.0, window=3)
    expired = [window.add(Segment(n, 2.0 * n, 2.0 * n + 2, ()), f"{n}.vtt") for n in range(9)]
    # A segment leaves the playlist when the third after it is added, and its file goes four segments later.
    assert [list(uris) for uris in expired] == [[], [], [], [], [], [], [], ["0.vtt"], ["1.vtt"]]
    assert window.render().splitlines()[3:] == [
        "#EXT-X-MEDIA-SEQUENCE:6",
        *(line for n in (6, 7, 8) for line in ("#EXTINF:2.000,", f"{n}.vtt")),
    ]


def test_invalid_options() -> None:
    for options, message in [
        ({"delay": -1.0}, "delay=-1.0: must be at least 0 seconds"),
        ({"delay": math.inf}, "delay=inf: must be at least 0 seconds"),
        ({"seconds": 0.5}, "seconds=0.5: a segment must have at least 1 second"),
    ]:
        with pytest.raises(ConfigError, match=message):
            CaptionSegments(MODEL_DELAY, FRAME_RATE, **options)
    with pytest.raises(ConfigError, match="window=2: must be at least 3 segments"):
        MediaPlaylist(6.0, window=2)
