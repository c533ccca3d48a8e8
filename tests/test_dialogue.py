from __future__ import annotations

import pytest

from slipstream.client import StreamEvent
from slipstream.dialogue import EagerEnd, Ended, Interim, Resumed, SpeechStarted, TurnEvent, TurnListener, Utterance
from slipstream.errors import ConfigError
from slipstream.events import EndOfTurn, Final, MarkerReached, PartialWord, Step, Turn, Word

FOX, DOG = Word("fox", 0.0, 0.4, 0.8), Word("dog", 0.5, 0.9, 0.6)


class Flushes:
    """A stream that records its flushes."""

    lag = 0.1

    def __init__(self) -> None:
        self.ids: list[int] = []

    def flush(self, id: int = 0) -> None:
        self.ids.append(id)


def play(listener: TurnListener, *events: StreamEvent) -> list[TurnEvent]:
    return [change for event in events for change in listener.handle(event)]


def step(pause: float) -> Step:
    return Step(1, (0.0, 0.0, pause, 0.0), 0)


def test_a_turn_ends_with_the_flush_at_the_servers_end_of_turn() -> None:
    stream = Flushes()
    listener = TurnListener(stream)
    partial = PartialWord("do", 0.5)
    changes = play(listener, FOX, partial, EndOfTurn(1.0), DOG)
    assert changes == [
        SpeechStarted(0.0),
        Interim(Utterance((FOX,))),
        Interim(Utterance((FOX,), partial)),
        Interim(Utterance((FOX, DOG))),
    ]
    assert listener.speaking
    assert play(listener, MarkerReached(1)) == [Ended(Utterance((FOX, DOG)))]
    assert not listener.speaking
    assert play(listener, EndOfTurn(2.0), MarkerReached(2)) == []


def test_an_interim_comes_only_with_new_text() -> None:
    listener = TurnListener(Flushes())
    partial = PartialWord("fox", 0.0)
    changes = play(listener, partial, partial, FOX, DOG)
    assert changes == [SpeechStarted(0.0), Interim(Utterance((), partial)), Interim(Utterance((FOX, DOG)))]
    assert play(listener, EndOfTurn(1.0), MarkerReached(1), partial)[1:] == [
        SpeechStarted(0.0),
        Interim(Utterance((), partial)),
    ]


def test_an_eager_end_has_complete_text_and_equals_the_end() -> None:
    stream = Flushes()
    listener = TurnListener(stream, eager_above=0.3)
    changes = play(listener, FOX, step(0.2), step(0.4), step(0.5), DOG, MarkerReached(1), step(0.5), EndOfTurn(1.0))
    assert stream.ids == [1]
    assert changes[-2:] == [EagerEnd(Utterance((FOX, DOG))), Ended(Utterance((FOX, DOG)))]


def test_speech_after_an_eager_end_withdraws_it() -> None:
    stream = Flushes()
    listener = TurnListener(stream, eager_above=0.3)
    changes = play(listener, FOX, step(0.4), MarkerReached(1), DOG, step(0.9), MarkerReached(2))
    assert changes[2:] == [
        EagerEnd(Utterance((FOX,))),
        Resumed(),
        Interim(Utterance((FOX, DOG))),
        EagerEnd(Utterance((FOX, DOG))),
    ]


def test_an_end_of_turn_during_an_eager_flush_ends_the_turn_once() -> None:
    stream = Flushes()
    listener = TurnListener(stream, eager_above=0.3)
    changes = play(listener, FOX, step(0.4), EndOfTurn(1.0), MarkerReached(1), MarkerReached(2))
    assert changes[2:] == [EagerEnd(Utterance((FOX,))), Ended(Utterance((FOX,)))]


def test_silence_has_no_eager_end() -> None:
    stream = Flushes()
    assert play(TurnListener(stream, eager_above=0.3), step(0.9), step(0.9)) == []
    assert stream.ids == []


def test_the_agents_flush_is_confirmed_even_without_text() -> None:
    stream = Flushes()
    listener = TurnListener(stream)
    listener.flush()
    assert play(listener, MarkerReached(1)) == [Ended(Utterance(()), confirms=True)]
    listener.flush()
    assert play(listener, FOX, MarkerReached(2))[-1] == Ended(Utterance((FOX,)), confirms=True)


def test_without_server_turns_only_complete_turns_end() -> None:
    stream = Flushes()
    listener = TurnListener(stream, server_turns=False)
    assert play(listener, FOX, EndOfTurn(0.45), DOG, Turn(0.0, 0.4))[-1] == Ended(Utterance((FOX,)))
    assert stream.ids == []
    assert listener.speaking
    assert play(listener, Final(1.0, 0.0)) == [Ended(Utterance((DOG,)))]


def test_a_stream_that_is_behind_is_not_flushed_at_a_pause() -> None:
    stream = Flushes()
    stream.lag = 2.0
    listener = TurnListener(stream, eager_above=0.3)
    assert play(listener, FOX, step(0.4), EndOfTurn(0.45), DOG, Turn(0.0, 0.4))[-1] == Ended(Utterance((FOX,)))
    assert stream.ids == []


def test_an_utterance_has_text_times_and_confidence() -> None:
    utterance = Utterance((FOX, DOG), PartialWord("se", 1.0))
    assert (utterance.text, utterance.start, utterance.end, utterance.confidence) == (
        "fox dog se",
        0.0,
        0.9,
        pytest.approx(0.7),
    )
    nothing = Utterance(())
    assert (nothing.text, nothing.start, nothing.end, nothing.confidence) == ("", 0.0, 0.0, 0.0)
    assert Utterance((), PartialWord("se", 1.0)).start == 1.0


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="eager_above=2"):
        TurnListener(Flushes(), eager_above=2)
    with pytest.raises(ConfigError, match="head=-1"):
        TurnListener(Flushes(), head=-1)
