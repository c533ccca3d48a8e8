from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from tests.test_transcript import spoken, transcript

from slipstream.errors import ConfigError
from slipstream.events import Turn, Word
from slipstream.subtitles import MAX_CUE_SECONDS, MIN_CUE_SECONDS, SubtitleLayout


def texts(words: list[Word], layout: SubtitleLayout | None = None) -> list[str]:
    return [cue.text for cue in transcript(words).cues(layout)]


@given(
    st.lists(
        st.tuples(
            st.text("abcdefgh.,?!-日本👍\u0301", min_size=1, max_size=50),
            st.floats(0, 2.5, allow_nan=False),
            st.floats(0, 1, allow_nan=False),
        ),
        max_size=60,
    ),
    st.sets(st.integers(0, 59)),
    st.builds(SubtitleLayout, st.integers(2, 50), st.integers(1, 3), st.none() | st.integers(1, 9)),
    st.floats(0, 60),
)
def test_cues_fit_the_layout_keep_every_letter_and_do_not_overlap(
    drawn: list[tuple[str, float, float]], ends_of_turn: set[int], layout: SubtitleLayout, cut: float
) -> None:
    words, time = [], 0.0
    for text, gap, length in drawn:
        words.append(Word(text, time + gap, time + gap + length))
        time += gap + length
    bounds = [0, *sorted(end for end in ends_of_turn if end < len(words)), len(words)]
    groups = [words[first:last] for first, last in itertools.pairwise(bounds) if first < last]
    duration = max(time - cut, 0.0)
    made = transcript(words, [Turn(group[0].start, group[-1].end) for group in groups], duration)
    found = made.cues(layout)
    assert re.sub(r"\s", "", "".join(cue.text for cue in found)) == re.sub(r"\s", "", made.text)
    for cue, after in itertools.zip_longest(found, found[1:]):
        lines = cue.text.split("\n")
        assert len(lines) <= layout.max_line_count
        assert all(cell_len(line) <= layout.max_line_width for line in lines)
        assert layout.max_words is None or len(cue.text.split()) <= layout.max_words
        assert 0 <= cue.start <= cue.end <= cue.start + MAX_CUE_SECONDS
        free = after.start if after is not None else duration
        assert cue.end <= max(free, cue.start)
        assert cue.end >= min(cue.start + MIN_CUE_SECONDS, free)


def test_a_cue_ends_with_a_sentence_once_a_line_is_full() -> None:
    text = "Short. This sentence is quite long, but it ends here. And then another begins"
    assert [cue.replace("\n", " ") for cue in texts(spoken(text, seconds=0.2))] == [
        "Short. This sentence is quite long, but it ends here.",
        "And then another begins",
    ]


def test_a_cue_ends_at_a_pause() -> None:
    assert texts(spoken("before the pause") + spoken("after it", start=3.0)) == ["before the pause", "after it"]


def test_lines_are_about_equally_long() -> None:
    assert texts(spoken("one two three four five six seven eight nine ten", seconds=0.2)) == [
        "one two three four five\nsix seven eight nine ten"
    ]


def test_a_layout_limits_columns_lines_and_words() -> None:
    words = spoken("one two three four five six", seconds=0.4)
    assert texts(words, SubtitleLayout(max_line_width=14)) == ["one two three\nfour five six"]
    assert texts(words, SubtitleLayout(max_line_width=14, max_line_count=1)) == ["one two three", "four five six"]
    assert texts(words, SubtitleLayout(max_words=2)) == ["one two", "three four", "five six"]
    assert texts(words, SubtitleLayout(max_words=1)) == ["one", "two", "three", "four", "five", "six"]


@pytest.mark.parametrize("fields", [{"max_line_width": 1}, {"max_line_count": 0}, {"max_words": 0}])
def test_a_layout_below_its_minimum_is_an_error(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(fields))}=.: must be at least"):
        SubtitleLayout(**fields)
    with pytest.raises(ConfigError, match="must be at least"):
        transcript([]).to_vtt(**fields)


def test_a_last_short_word_takes_words_from_the_cue_before_it() -> None:
    layout = SubtitleLayout(max_line_width=20, max_line_count=1)
    assert texts(spoken("one two three four me", seconds=0.4), layout) == ["one two", "three four me"]
    assert texts(spoken("one two three four five six me", seconds=0.3), SubtitleLayout(max_words=3)) == [
        "one two three",
        "four five",
        "six me",
    ]


def test_a_last_short_sentence_joins_the_cue_before_it() -> None:
    text = "This sentence is long enough to fill one line, and ends. Yes."
    assert [cue.replace("\n", " ") for cue in texts(spoken(text, seconds=0.2))] == [text]


def test_a_short_word_after_a_pause_stays_alone() -> None:
    words = spoken("one two three four five", seconds=0.4) + spoken("yes", start=6.0)
    assert texts(words)[-1] == "yes"


def test_wide_letters_take_two_columns() -> None:
    words = spoken("日本語 の 字幕 は 幅 が 二倍 です", seconds=0.3)
    assert texts(words, SubtitleLayout(max_line_width=9)) == ["日本語 の\n字幕 は", "幅 が\n二倍 です"]
    assert texts(spoken("👍👍 👍👍 👍👍"), SubtitleLayout(max_line_width=9)) == ["👍👍 👍👍\n👍👍"]
    assert texts(spoken("e\u0301te\u0301 e\u0301te\u0301"), SubtitleLayout(max_line_width=7)) == [
        "e\u0301te\u0301 e\u0301te\u0301"
    ]


def test_a_word_longer_than_a_line_is_cut_and_its_time_divided() -> None:
    assert texts([Word("x" * 60, 0, 2)]) == ["x" * 42 + "\n" + "x" * 18]
    found = transcript([Word("日" * 10, 0, 4)]).cues(SubtitleLayout(max_line_width=9, max_line_count=1))
    assert [(cue.text, cue.start) for cue in found] == [("日日日日", 0.0), ("日日日日", 4 / 3), ("日日", 8 / 3)]


def test_cues_stay_within_the_recording() -> None:
    (cue,) = transcript([Word("end", 9.5, 9.7)], duration=10.0).cues()
    assert cue.end == 10.0
    (cue,) = transcript([Word("end", 9.5, 10.4)], duration=10.0).cues()
    assert cue.end == 10.0


def test_srt_is_well_formed() -> None:
    block = r"\d+\n(\d\d:){2}\d\d,\d{3} --> (\d\d:){2}\d\d,\d{3}\n.+(\n.+)?\n"
    long = transcript(spoken("word " * 300))
    assert re.fullmatch(rf"({block}\n)*{block}", long.to_srt())
