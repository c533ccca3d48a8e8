"""The words of a script, and the machine that gives them to the model."""

from __future__ import annotations

import random

import pytest
from tests.fakes import tiny_tokenizer

from slipstream.errors import TextError
from slipstream.model.script import ScriptMachine, ScriptReader, TokenIds, script_to_entries

IDS = TokenIds(card=401)
TEXTS = [
    'It\u2019s (quite) late: <break time="0.5s"/>good night',
    '<break time="1s" />\n now <break  time="2.5s">then<break time="0.08s"/>',
    "a < b <break me> <brea <break time=3s/> end",
    "  two  spaces, and\ttabs ",
    "",
]


def reader(**options: int) -> ScriptReader:
    return ScriptReader(tiny_tokenizer(), IDS, 12.5, **options)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", range(5))
def test_text_in_any_pieces_gives_the_same_entries(text: str, seed: int) -> None:
    rng = random.Random(seed)
    whole, pieces = reader(padding_between=1), reader(padding_between=1)
    entries, start = [], 0
    while start < len(text):
        end = start + rng.randint(1, 4)
        entries += pieces.feed(text[start:end])
        start = end
    assert entries + pieces.end() == [*whole.feed(text), *whole.end()]


def test_a_word_is_complete_with_the_space_after_it() -> None:
    script = reader()
    assert script.feed("Hel") == []
    assert [entry.text for entry in script.feed("lo wor")] == ["Hello"]
    assert [entry.text for entry in script.end()] == ["wor"]


def test_a_tag_that_never_ends_does_not_hold_back_the_words_after_it() -> None:
    script = reader()
    assert script.feed("<break time=") == []
    assert len(script.feed("words and " * 20)) > 30


def test_breaks_are_padding_in_steps() -> None:
    entries = script_to_entries(tiny_tokenizer(), IDS, 12.5, ['one<break time="0.5s"/>two'])
    assert [(entry.text, entry.padding) for entry in entries] == [("one", 0), ("", 6), ("two", 0)]


@pytest.mark.parametrize("seconds", ["60.1", "9" * 400])
def test_a_break_that_is_too_long_is_refused(seconds: str) -> None:
    script = reader()
    assert script.feed('<break time="60s"/>')[0].padding == 750
    with pytest.raises(TextError, match="a <break> is at most 60 s long"):
        script.feed(f'one <break time="{seconds}s"/> two')
    assert [entry.text for entry in script.feed("three ")] == ["three"]


def test_turns_begin_with_the_token_of_their_speaker() -> None:
    entries = script_to_entries(tiny_tokenizer(), IDS, 12.5, ["a b", "c", "", "d", "e"])
    assert [entry.tokens[0] for entry in entries if entry.text in "acde"] == [
        IDS.main,
        IDS.other,
        entries[3].tokens[0],
        1,
    ]
    assert entries[3].tokens[0] > 2  # the same speaker continues after an empty turn
    alone = script_to_entries(tiny_tokenizer(), IDS, 12.5, ["a", "c"], multi_speaker=False)
    assert all(entry.tokens[0] > 2 for entry in alone)


def test_a_copy_continues_as_the_original_does() -> None:
    machine = ScriptMachine(IDS, second_stream_ahead=2)
    state = machine.new_state(script_to_entries(tiny_tokenizer(), IDS, 12.5, ["the quick brown fox jumps"]))
    for step in range(7):
        machine.process(step, state, 0)
    copy = state.copy()
    outputs = [machine.process(step, state, 0) for step in range(7, 40)]
    assert [machine.process(step, copy, 0) for step in range(7, 40)] == outputs
    assert copy == state
    assert [word for word, _ in state.transcript] == ["the", "quick", "brown", "fox", "jumps"]
    assert state.end_step is not None
