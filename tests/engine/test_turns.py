from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models import stt_config

from slipstream.engine.turns import VOICE_DB, TurnBuilder, TurnDetector, TurnOptions, VoiceLevel
from slipstream.errors import ConfigError
from slipstream.events import Turn, Word
from slipstream.language.identify import LanguageTracker
from slipstream.model.confidence import EndingCurve


def ends(detector: TurnDetector, probabilities: list[float]) -> list[int]:
    """Frames, counted from 1, where turns end when head 2 gives `probabilities`."""
    return [
        frame
        for frame, probability in enumerate(probabilities, start=1)
        if detector.push((0.5, 0.5, probability, 0.5), voiced=False, word_frame=None)
    ]


def detector(**options: float | EndingCurve) -> TurnDetector:
    return TurnDetector(TurnOptions(**options), delay_frames=6, frame_rate=12.5)  # type: ignore[arg-type]


def late(detector: TurnDetector, frames: list[tuple[float, bool, int | None]], lag: int) -> list[int]:
    """The ends of turn, where head 2 and the text are `lag` frames late; `frames` has head, voice and word of each."""
    found = []
    for number in range(len(frames) + lag):
        probability, _, word_frame = frames[number - lag] if number >= lag else (0.5, False, None)
        pause_H = (0.5, 0.5, probability, 0.5)
        if number < len(frames):
            ended = detector.push(pause_H, frames[number][1], word_frame)
        else:
            ended = detector.push_output(pause_H, word_frame)
        found += [detector.ended_frame] if ended else []
    return found


# ---------------------------------------------------------------------------------------------- with pause heads


@pytest.mark.parametrize("curve", [None, EndingCurve(bias=-6.0, heads=(0, 0, 1, 0), silence=8.0, silence_seconds=0.8)])
def test_turns_end_at_the_same_frame_of_the_audio_where_the_model_encodes_it_later(curve: EndingCurve | None) -> None:
    one: list[tuple[float, bool, int | None]] = [(0.1, True, None)] * 20 + [(0.8, False, None)] * 15
    frames = [*one, *one, (0.1, True, 70), *one]
    options = TurnOptions(curve=curve)
    expected = late(TurnDetector(options, 6, 12.5), frames, 0)
    assert len(expected) == 3
    for lag in (1, 10, 60):
        assert late(TurnDetector(options, 6 + lag, 12.5, lag), frames, lag) == expected


def test_a_turn_ends_once_above_the_threshold_and_again_only_after_speech() -> None:
    speech, unsure, pause = [0.1] * 20, [0.5] * 5, [0.9] * 10
    assert ends(detector(), speech + unsure + pause + unsure + pause + speech + pause) == [26, 71]


def test_silence_from_the_start_is_not_a_turn() -> None:
    assert ends(detector(), [0.95] * 100) == []


def test_no_turn_ends_during_the_warmup() -> None:
    assert ends(detector(warmup_frames=12), [0.0] * 6 + [1.0] * 6 + [0.5] * 10) == []
    assert ends(detector(warmup_frames=0), [0.0] * 6 + [1.0] * 6 + [0.5] * 10) == [7]


def test_a_word_spoken_during_the_warmup_still_makes_a_turn() -> None:
    short = detector()
    frames = [short.push((0, 0, 0.9, 0), False, word_frame=3 if frame == 10 else None) for frame in range(1, 20)]
    assert [frame for frame, ended in enumerate(frames, start=1) if ended] == [13]


def test_a_late_word_begins_no_turn() -> None:
    late = detector()
    assert ends(late, [0.1] * 20 + [0.9]) == [21]
    assert not any(late.push((0, 0, 0.9, 0), False, word_frame=18) for _ in range(10))
    assert late.push((0, 0, 0.9, 0), False, word_frame=25)


def test_thresholds_and_head_are_options() -> None:
    assert ends(detector(end_above=0.95), [0.1] * 20 + [0.9] * 10) == []
    other = detector(head=0)
    assert [other.push((p, 0, 0, 0), False, None) for p in [0.1] * 20 + [0.9]] == [False] * 20 + [True]


def test_a_head_the_model_does_not_have_is_an_error() -> None:
    with pytest.raises(ConfigError, match="pause heads 0 to 3"):
        detector(head=4).push((0, 0, 0, 0), False, None)


CURVE = EndingCurve(bias=-4.0, heads=(2.0, 0.0, 0.0, 0.0), silence=4.0, silence_seconds=0.4)


def pushed(detector: TurnDetector, frames: list[tuple[float, bool]]) -> list[int]:
    """Frames, counted from 1, where turns end, for the probability of head 0 and whether a frame has voice."""
    return [
        frame
        for frame, (pause, voiced) in enumerate(frames, start=1)
        if detector.push((pause, 0, 0, 0), voiced, word_frame=None)
    ]


def test_with_a_curve_a_turn_ends_by_the_heads_and_the_silence_together() -> None:
    speech, unsure, sure, noisy = [(0.1, True)] * 20, [(0.6, False)] * 10, [(0.9, False)] * 10, [(0.9, True)] * 10
    assert pushed(detector(curve=CURVE, end_above=0.9), speech + unsure) == []
    assert pushed(detector(curve=CURVE, end_above=0.9), speech + noisy) == []
    assert pushed(detector(curve=CURVE, end_above=0.9), speech + sure) == [23]


def test_with_a_curve_a_click_does_not_begin_another_turn() -> None:
    speech, pause = [(0.1, True)] * 20, [(0.9, False)] * 10
    assert pushed(detector(curve=CURVE, end_above=0.9), speech + pause + [(0.5, True)] + pause) == [23]
    assert pushed(detector(curve=CURVE, end_above=0.9), speech + pause + [(0.5, True)] * 3 + pause) == [23, 36]


def test_faint_frames_are_silence_for_a_curve_only() -> None:
    curve, plain = detector(curve=CURVE, end_above=0.9), detector(end_above=0.9)
    for one, frames in ((curve, 3), (plain, 0)):
        ended = [one.push((0.1, 0, 0, 0), True, None) for _ in range(20)]
        ended += [one.push((0.9, 0, 0, 0), True, None, faint=True) for _ in range(10)]
        assert ended == [False] * 22 + [True] + [False] * 7 if frames else not any(ended)


def test_a_frame_far_below_the_loudest_of_the_last_seconds_is_faint() -> None:
    level = VoiceLevel()
    loud, noise = 10.0**-2, 10.0**-4
    for _ in range(10):
        level.push(10.0**-6)
    faint = []
    for square in [noise] * 5 + [loud] * 5 + [noise] * 5:
        level.push(square)
        faint.append(level.faint)
    assert faint == [False] * 10 + [True] * 5
    for _ in range(400):
        level.push(noise)
    assert not level.faint


def test_the_probability_that_ends_turns_can_be_read() -> None:
    plain, curve, silent = detector(), detector(curve=CURVE), detector()
    plain.push((0.5, 0.5, 0.25, 0.5), True, None)
    curve.push((0.5, 0.5, 0.25, 0.5), True, None)
    silent.push((), True, None)
    assert (plain.probability, silent.probability) == (0.25, None)
    assert curve.probability == CURVE.at((0.5, 0.5, 0.25, 0.5), 0.0)


def test_a_curve_of_another_number_of_heads_is_an_error() -> None:
    with pytest.raises(ConfigError, match="4 pause heads, the model 2"):
        detector(curve=CURVE).push((0, 0), False, None)


def test_the_options_of_a_model_have_its_curve() -> None:
    config = stt_config(pause_heads=4).model_copy(update={"end_of_turn": CURVE, "end_of_turn_above": 0.7})
    assert TurnOptions.of(config) == TurnOptions(head=2, curve=CURVE, end_above=0.7, resume_below=0.4)


@pytest.mark.parametrize(("heads", "head"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2)])
def test_a_model_with_fewer_heads_uses_its_last(heads: int, head: int) -> None:
    options = TurnOptions.of(stt_config(pause_heads=heads))
    assert options.head == head
    TurnDetector(options, delay_frames=6, frame_rate=12.5).push((0.5,) * heads, False, None)


@pytest.mark.parametrize(
    "options",
    [
        {"end_above": 0.3},
        {"end_above": 1.2},
        {"resume_below": -0.1},
        {"head": -1},
        {"quiet_seconds": 0.0},
        {"end_above": float("nan")},
    ],
)
def test_invalid_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        TurnOptions(**options)  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1), max_size=200))
def test_between_two_ends_there_was_speech(probabilities: list[float]) -> None:
    found = ends(detector(), probabilities)
    for first, second in itertools.pairwise(found):
        assert min(probabilities[first : second - 1], default=1.0) < 0.4


def test_a_turn_ends_by_its_longest_wait_whatever_the_head_predicts() -> None:
    waiting = detector(wait_seconds=2.0)
    sound = [False] * 20 + [True] * 10 + [False] * 60
    frames = [frame for frame, voiced in enumerate(sound, start=1) if waiting.push((0.5,) * 4, voiced, None)]
    assert frames == [20 + 10 + 25]


def test_no_head_is_used_where_the_options_name_none() -> None:
    by_sound = detector(head=None)
    sound = [False] * 20 + [True] * 10 + [False] * 30
    assert [f for f, voiced in enumerate(sound, start=1) if by_sound.push((0.9,) * 4, voiced, None)] == [40]


# ------------------------------------------------------------------------------------------------ where turns start


def starts(detector: TurnDetector, frames: list[tuple[bool, int | None]]) -> list[tuple[int, int]]:
    """The frames in which a start was found, and where the turn began."""
    found = []
    for frame, (voiced, word_frame) in enumerate(frames, start=1):
        detector.push((), voiced, word_frame)
        if detector.started_frame is not None:
            found.append((frame, detector.started_frame))
    return found


def test_a_turn_starts_with_the_first_voiced_frame() -> None:
    sound = [False] * 20 + [True] * 10 + [False] * 30 + [True, False] * 5 + [True] * 10
    assert starts(detector(), [(voiced, None) for voiced in sound]) == [(23, 20), (73, 70)]


def test_a_quiet_word_starts_a_turn_where_it_was_spoken() -> None:
    assert starts(detector(), [(False, None)] * 10 + [(False, 4)] * 3) == [(11, 4)]
    assert starts(detector(), [(False, None)] * 10 + [(False, 0)] * 3) == [(11, 0)]


def test_a_late_word_of_the_turn_before_starts_none() -> None:
    by_sound = detector()
    assert starts(by_sound, [(True, None)] * 10 + [(False, None)] * 10) == [(3, 0)]
    assert starts(by_sound, [(False, 8)] * 5) == []


# ------------------------------------------------------------------------------------------- without pause heads


def test_a_turn_ends_after_a_quiet_time() -> None:
    sound = [False] * 20 + [True] * 10 + [False] * 30 + [True] * 10 + [False] * 30
    by_sound = detector(quiet_seconds=0.8)
    found = [frame for frame, voiced in enumerate(sound, start=1) if by_sound.push((), voiced, None)]
    assert found == [40, 80]


def test_a_click_begins_no_turn() -> None:
    by_sound = detector()
    assert not any(by_sound.push((), voiced, None) for voiced in [True, True] + [False] * 50)


def test_blank_text_ends_a_turn_where_noise_hides_the_silence() -> None:
    by_text = detector(blank_seconds=2.0)
    frames = [by_text.push((), True, word_frame=frame if frame < 20 else None) for frame in range(60)]
    assert frames.index(True) == 19 + 25


def test_text_that_lags_is_not_blank_text() -> None:
    slow = TurnDetector(TurnOptions(blank_seconds=1.0), delay_frames=32, frame_rate=12.5)
    assert not any(slow.push((), True, None) for _ in range(40))


def test_voice_is_detected_above_the_background() -> None:
    level = VoiceLevel()
    assert all(level.push(0.0) < 0 for _ in range(10))
    assert level.push(1e-3) > VOICE_DB
    assert level.push(1e-7) < VOICE_DB


def test_speech_is_detected_above_a_steady_hum() -> None:
    level = VoiceLevel()
    hum = 10**-4.5
    judged = [level.push(hum) for _ in range(100)]
    assert judged[0] > VOICE_DB
    assert judged[-1] < VOICE_DB
    assert level.push(hum * 100) > VOICE_DB


# ---------------------------------------------------------------------------------------------------- assembling


def test_a_turn_waits_for_the_words_spoken_before_its_end() -> None:
    builder = TurnBuilder()
    assert builder.add(Word("one", 0.1, 0.3)) == []
    builder.end(1.0)
    assert builder.settle(0.9) == []
    assert builder.add(Word("late", 0.5, 0.8)) == []
    assert builder.settle(1.0) == [Turn(0.1, 0.8)]
    assert builder.settle(5.0) == []


def test_a_word_after_the_end_closes_the_turn_before_it() -> None:
    builder = TurnBuilder()
    builder.add(Word("one", 0.1, 0.3))
    builder.end(1.0)
    assert builder.add(Word("two", 1.2, 1.5)) == [Turn(0.1, 0.3)]
    assert builder.flush() == [Turn(1.2, 1.5)]
    assert builder.flush() == []


def test_a_turn_without_words_is_dropped() -> None:
    builder = TurnBuilder()
    builder.end(1.0)
    builder.end(2.0)
    assert builder.settle(3.0) == []
    assert builder.flush() == []


def test_a_turn_has_the_language_of_its_words() -> None:
    builder = TurnBuilder(LanguageTracker(["en", "fr"]))
    for start, text in enumerate(["nous", "voulons", "une", "chambre"]):
        assert builder.add(Word(text, start, start + 1)) == []
    (turn,) = builder.flush()
    assert turn.language == "fr"
    assert turn.language_confidence is not None
    assert turn.language_confidence > 0.99
    assert builder.flush() == []
