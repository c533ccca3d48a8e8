from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slipstream.engine.reconcile import Reconciler
from slipstream.events import OpenWord, PartialWord, Word


def word(text: str, start: float, end: float | None = None) -> Word:
    return Word(text, start, start + 0.2 if end is None else end)


def flushed(*words: Word, audio_end: float = 100.0) -> Reconciler:
    """A reconciler that has passed these words in a flush."""
    reconciler = Reconciler()
    reconciler.begin_flush(audio_end)
    for each in words:
        assert reconciler.pass_on(each) is not None
    reconciler.end_flush()
    return reconciler


def test_a_word_of_a_flush_passes_once() -> None:
    reconciler = flushed(word("fox", 1.0), word("dog", 1.4))
    assert reconciler.pass_on(PartialWord("f", 1.08)) is None
    assert reconciler.pass_on(OpenWord("fox", 1.08, 1.0)) is None
    assert reconciler.pass_on(word("fox", 1.08)) is None
    assert reconciler.pass_on(word("dog", 1.4)) is None
    assert reconciler.pass_on(word("sea", 1.8)) == word("sea", 1.8)


def test_the_same_word_spoken_again_passes() -> None:
    reconciler = flushed(word("no", 1.0))
    assert reconciler.pass_on(word("no", 1.0)) is None
    assert reconciler.pass_on(word("no", 1.2)) is not None


def test_a_word_cut_by_the_flush_is_not_replaced() -> None:
    assert flushed(word("hel", 1.0)).pass_on(word("hello", 1.08)) is None


def test_a_word_that_the_flush_missed_passes_late() -> None:
    reconciler = flushed(word("one", 1.0), word("three", 1.4, 1.6))
    told = [reconciler.pass_on(word(text, start)) for text, start in (("one", 1.0), ("two", 1.2), ("three", 1.4))]
    assert told == [None, Word("two", 1.6, 1.6), None]


def test_a_second_flush_passes_only_new_words() -> None:
    reconciler = flushed(word("fox", 1.0))
    reconciler.begin_flush(2.0)
    assert reconciler.pass_on(word("fox", 1.0)) is None
    assert reconciler.pass_on(word("dog", 1.4)) is not None
    reconciler.end_flush()
    assert [reconciler.pass_on(word(text, start)) for text, start in (("fox", 1.0), ("dog", 1.4))] == [None, None]


def test_times_of_a_flush_stop_at_the_end_of_the_audio() -> None:
    reconciler = Reconciler()
    reconciler.begin_flush(1.05)
    assert reconciler.pass_on(word("fox", 1.0, 1.5)) == Word("fox", 1.0, 1.05)
    assert reconciler.pass_on(word("dog", 1.2, 1.7)) == Word("dog", 1.05, 1.05)
    reconciler.end_flush()
    assert reconciler.pass_on(word("dog", 1.2, 1.7)) is None


times = st.lists(st.floats(0, 50, allow_nan=False), max_size=30).map(sorted)


@given(times, st.sets(st.integers(0, 29)), st.floats(0, 50, allow_nan=False))
def test_words_always_pass_in_order(starts: list[float], in_flush: set[int], audio_end: float) -> None:
    reconciler, last_end = Reconciler(), 0.0
    for number, start in enumerate(starts):
        if number in in_flush:
            reconciler.begin_flush(audio_end)
        told = reconciler.pass_on(word("fox" if number % 3 else "dog", start))
        if number in in_flush:
            reconciler.end_flush()
        if isinstance(told, Word):
            assert last_end <= told.start <= told.end
            last_end = told.end
