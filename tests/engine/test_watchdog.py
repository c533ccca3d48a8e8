from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.engine.watchdog import LONGEST_LOOP, MIN_LOOP_TOKENS, Watchdog, WatchdogOptions
from slipstream.errors import ConfigError

DELAY = 6


def watchdog(**options: float) -> Watchdog:
    return Watchdog(WatchdogOptions(**options), DELAY, frame_rate=12.5)  # type: ignore[arg-type]


def first_reason(dog: Watchdog, frames: list[tuple[int | None, bool]]) -> tuple[int, str] | None:
    """At which frame, counted from 1, it requests a fresh state, and why."""
    for frame, (token, voiced) in enumerate(frames, start=1):
        if reason := dog.push(token, voiced):
            return frame, reason
    return None


def test_speech_without_text_is_a_failure_and_the_next_pause_is_waited_for() -> None:
    frames = [(None, True)] * 60 + [(None, False)] * 10
    assert first_reason(watchdog(mute_seconds=4, pause_seconds=0.4), frames) == (65, "no text for 4 s of speech")


def test_without_a_pause_the_patience_ends() -> None:
    found = first_reason(watchdog(mute_seconds=4, patience_seconds=2), [(None, True)] * 200)
    assert found == (50 + DELAY + 1 + 25, "no text for 4 s of speech")


def test_silence_is_not_speech_without_text() -> None:
    assert first_reason(watchdog(mute_seconds=4), [(None, False)] * 1000) is None
    slow = [(None if frame % 20 else frame, True) for frame in range(1000)]
    assert first_reason(watchdog(mute_seconds=4), slow) is None


def test_text_that_comes_back_before_the_pause_cancels_the_recovery() -> None:
    frames = [(None, True)] * 60 + [(7, True)] + [(None, False)] * 20
    assert first_reason(watchdog(mute_seconds=4), frames) is None


def test_music_makes_it_wait_longer_each_time() -> None:
    dog = watchdog(mute_seconds=4, patience_seconds=0)
    found = [frame for frame in range(1000) if dog.push(None, True)]
    assert [later - earlier for earlier, later in itertools.pairwise(found)] == [107, 207, 407]


@pytest.mark.parametrize("n", range(1, LONGEST_LOOP + 1))
def test_a_repeated_run_of_tokens_is_a_failure(n: int) -> None:
    loop = [(10 + number % n, True) for number in range(200)]
    frames = [(99, True), (98, True), *loop]
    found = first_reason(watchdog(loop_repeats=10, patience_seconds=0), frames)
    assert found is not None
    assert found[0] - 2 == max(10 * n, 20)
    assert found[1].startswith(f"the same {n} tokens")


def test_a_word_repeated_a_few_times_is_not_a_failure() -> None:
    assert first_reason(watchdog(), [(10, True), (11, True)] * 5 + [(12, True)] * 9) is None


def test_the_same_answer_to_every_question_is_no_failure() -> None:
    assert first_reason(watchdog(), [(10, True), (11, True), *[(None, False)] * 15] * 100) is None


def test_pads_inside_a_loop_do_not_hide_it() -> None:
    frames = [(10, True), (None, True), (None, False)] * 30
    assert first_reason(watchdog(patience_seconds=0), frames) is not None


def loop_reason(tokens: list[int], repeats: int) -> str | None:
    """The reason for which the newest of these tokens ends a loop, by the definition of a loop."""
    for n in range(1, LONGEST_LOOP + 1):
        equal = [later == earlier for earlier, later in zip(tokens, tokens[n:], strict=False)]
        repeated = n + len(list(itertools.takewhile(bool, reversed(equal))))
        if repeated >= max(n * repeats, MIN_LOOP_TOKENS):
            return f"the same {n} tokens {repeated // n} times in a row"
    return None


RUNS = st.tuples(
    st.lists(st.sampled_from([10, 11, 12]), min_size=1, max_size=9), st.integers(1, 30), st.integers(0, 14)
)


@given(st.lists(RUNS, max_size=4), st.sampled_from([3, 5, 10]))
def test_loops_match_their_definition_and_none_is_found_while_calm(
    runs: list[tuple[list[int], int, int]], repeats: int
) -> None:
    dog = watchdog(loop_repeats=repeats, mute_seconds=1000, patience_seconds=0)
    tokens: list[int] = []
    for run, times, pads in runs:
        for token in run * times:
            tokens.append(token)
            calm, expected = dog.calm, loop_reason(tokens, repeats)
            assert dog.push(token, True) == expected
            assert not (calm and expected)
            if expected:
                tokens.clear()
        for _ in range(pads):
            assert dog.push(None, True) is None
        if pads > 12:
            tokens.clear()


@pytest.mark.parametrize("options", [{"mute_seconds": 0}, {"loop_repeats": 2}, {"pause_seconds": -1}])
def test_invalid_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        watchdog(**options)
