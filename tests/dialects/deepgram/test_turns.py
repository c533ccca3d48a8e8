"""Flux's turns: the laws of its state machine, over random events and over live sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import ScriptRunner, silence, sound_of, speech
from tests.server.harness import serving, solo
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

from slipstream.dialects.deepgram.turns import TURNS, AskFlush, Found, Thresholds, TurnInfo, Turns
from slipstream.dialects.models import StreamInfo
from slipstream.events import OpenWord, Step, Word

INFO = StreamInfo("script", 0.5, 0.08)


class Laws:
    """Checks each message against the laws of Flux. `words`: those of all turns that have ended."""

    def __init__(self) -> None:
        self.state = "idle"
        self.eager: str | None = None
        self.turn = 0
        self.words: list[str] = []
        self.events: list[str] = []

    def check(self, event: str, turn: int, transcript: str, words: list[str], trigger: str | None) -> None:
        assert event in TURNS[self.state], f"{event} in {self.state}"
        self.state = TURNS[self.state][event]
        self.events.append(event)
        assert turn == self.turn
        assert transcript == " ".join(words)
        assert (trigger is not None) == (event == "EndOfTurn")
        if event == "EagerEndOfTurn":
            assert transcript
            self.eager = transcript
        elif event == "TurnResumed":
            assert self.eager is not None
            self.eager = None
        elif event == "EndOfTurn":
            assert self.eager in (None, transcript)
            assert transcript
            self.eager = None
            self.turn += 1
            self.words += words
        elif self.eager is not None:
            assert transcript == self.eager


def follow(laws: Laws, found: Iterable[Found]) -> int:
    """Check the messages; return how many flushes were requested."""
    flushes = 0
    for one in found:
        if isinstance(one, TurnInfo):
            texts = [word.text for word in one.words]
            laws.check(one.event, one.turn, " ".join(texts), texts, one.trigger)
        else:
            assert isinstance(one, AskFlush)
            flushes += 1
    return flushes


THRESHOLDS = st.builds(
    Thresholds,
    end=st.sampled_from([0.5, 0.7, 1.0]),
    eager=st.sampled_from([None, 0.3, 0.5]),
    timeout=st.sampled_from([0.5, 5.0]),
)


@settings(max_examples=300)
@given(st.data(), THRESHOLDS, st.booleans())
def test_the_laws_hold_for_any_order_of_events(data: st.DataObject, thresholds: Thresholds, heads: bool) -> None:
    turns, laws = Turns(thresholds, INFO), Laws()
    waiting, frame, said = 0, 0, []
    for _ in range(data.draw(st.integers(0, 60))):
        kind = data.draw(st.sampled_from(["step", "step", "step", "word", "open", "flushed", "force", "turn"]))
        clock = frame * INFO.frame_seconds
        if kind == "step":
            frame += 1
            pause = (data.draw(st.sampled_from([0.0, 0.35, 0.6, 0.9])),) * 4 if heads else ()
            waiting += follow(laws, turns.step(Step(frame, pause, 0, pause[2] if pause else None)))
        elif kind == "word":
            said.append(f"w{len(said)}")
            waiting += follow(laws, turns.word(Word(said[-1], clock, clock, 0.5)))
        elif kind == "open":
            said.append(f"w{len(said)}")
            waiting += follow(laws, turns.word(OpenWord(said[-1], clock, 0.5)))
            waiting += follow(laws, turns.word(Word(said[-1], clock, clock, 0.5)))
        elif kind == "force":
            turns.force(clock)
            waiting += 1
        elif kind == "turn":
            waiting += follow(laws, turns.end_of_turn())
        elif waiting:
            if data.draw(st.booleans()):  # a word that only the flush brings
                said.append(f"w{len(said)}")
                waiting += follow(laws, turns.word(Word(said[-1], clock, clock, 0.5)))
            waiting -= 1
            waiting += follow(laws, turns.flushed(clock))
    follow(laws, turns.final())
    assert laws.words == said


def test_the_end_of_a_turn_does_not_wait_for_the_flush_that_announces_it() -> None:
    turns = Turns(Thresholds(end=0.7, eager=0.5), INFO)
    list(turns.word(Word("yes", 0.0, 0.4, 0.9)))
    assert list(turns.step(Step(7, (0, 0, 0.6, 0), 0, 0.6))) == [AskFlush()]
    assert list(turns.step(Step(8, (0, 0, 0.8, 0), 0, 0.8))) == [AskFlush()]
    assert list(turns.step(Step(9, (0, 0, 0.1, 0), 0, 0.1)))[1:] == []
    found = [one for time in (0.56, 0.64) for one in turns.flushed(time)]
    assert [one.event for one in found if isinstance(one, TurnInfo)] == ["EagerEndOfTurn", "EndOfTurn"]


def test_a_turn_is_announced_resumed_and_ended() -> None:
    turns, laws = Turns(Thresholds(end=0.7, eager=0.5), INFO), Laws()

    def step(frame: int, pause: float) -> list[Found]:
        return [
            one
            for one in turns.step(Step(frame, (0, 0, pause, 0), 0, pause))
            if not isinstance(one, TurnInfo) or one.event != "Update"
        ]

    def events(found: Iterable[Found]) -> list[str]:
        return [one.event for one in found if isinstance(one, TurnInfo)]

    assert step(1, 0.1) == []
    assert events(turns.word(OpenWord("yes", 0.0, 0.9))) == ["StartOfTurn"]
    assert events(turns.word(Word("yes", 0.0, 0.4, 0.9))) == []
    assert step(2, 0.6) == [AskFlush()]
    assert step(3, 0.6) == []
    assert events(turns.flushed(0.16)) == ["EagerEndOfTurn"]
    assert events(step(4, 0.45)) == []  # not below the threshold by enough
    assert events(step(5, 0.3)) == ["TurnResumed"]
    assert step(6, 0.6) == [AskFlush()]
    assert events(turns.flushed(0.48)) == ["EagerEndOfTurn"]
    assert events(turns.word(Word("please", 0.5, 0.6, 0.9))) == ["TurnResumed"]
    assert step(7, 0.8) == [AskFlush()]
    assert events(turns.flushed(0.56)) == ["EagerEndOfTurn"]
    assert step(8, 0.8) == [AskFlush()]
    (ended,) = turns.flushed(0.64)
    assert isinstance(ended, TurnInfo)
    assert (ended.event, ended.trigger, [word.text for word in ended.words]) == (
        "EndOfTurn",
        "model",
        ["yes", "please"],
    )
    assert laws.turn == 0


def test_a_flush_of_an_earlier_position_does_not_answer() -> None:
    turns = Turns(Thresholds(), INFO)
    list(turns.word(Word("yes", 0.0, 0.4, 0.9)))
    turns.force(2.0)
    assert list(turns.flushed(1.0)) == []
    assert [one.event for one in turns.flushed(2.0) if isinstance(one, TurnInfo)] == ["EndOfTurn"]


def test_a_turn_without_an_end_times_out() -> None:
    turns = Turns(Thresholds(end=1.0, timeout=0.5), INFO)
    list(turns.word(Word("yes", 0.0, 0.4, 0.9)))
    asked = [
        frame for frame in range(1, 20) for one in turns.step(Step(frame, (1.0,) * 4, 0, 1.0)) if one == AskFlush()
    ]
    assert asked == [12]  # 0.96 s
    ended = [one for one in turns.flushed(0.96) if isinstance(one, TurnInfo)]
    assert [(one.event, one.trigger) for one in ended] == [("EndOfTurn", "timeout")]


# ----------------------------------------------------------------------------------------------------- live sessions


async def flux(address: str, query: str, pieces: list[np.ndarray], *messages: str) -> tuple[Laws, list[dict[str, Any]]]:
    laws, received = Laws(), []
    path = f"{address}/v2/listen?encoding=linear32&sample_rate=24000{query}"
    async with connect(path, max_queue=None) as socket:
        for piece_S in pieces:
            await socket.send(piece_S.astype("<f4").tobytes())
            if len(pieces) > 100:
                await asyncio.sleep(0.002)
        for message in messages:
            await socket.send(json.dumps({"type": message}))
        try:
            while True:
                received.append(json.loads(await asyncio.wait_for(socket.recv(), 20)))
        except ConnectionClosedOK:
            pass
    assert [message["sequence_id"] for message in received] == list(range(len(received)))
    assert received[0]["type"] == "Connected"
    for message in received:
        if message["type"] == "TurnInfo":
            words = [word["word"] for word in message["words"]]
            laws.check(message["event"], message["turn_index"], message["transcript"], words, message.get("trigger"))
    return laws, received


@pytest.mark.parametrize("heads", [0, 4])
@pytest.mark.parametrize("query", ["", "&eager_eot_threshold=0.3&eot_threshold=0.9", "&eager_eot_threshold=0.5"])
def test_the_laws_hold_for_live_sessions(heads: int, query: str) -> None:
    recordings = [np.concatenate([speech(seed, words=8), silence(30), speech(seed + 50, words=3)]) for seed in range(4)]
    rng = np.random.default_rng(heads)
    with serving(ScriptRunner(slots=4, pause_heads=heads)) as running:

        async def run() -> list[tuple[Laws, list[dict[str, Any]]]]:
            pieces = [np.split(audio_S, np.sort(rng.integers(0, len(audio_S), 12))) for audio_S in recordings]
            return list(await asyncio.gather(*(flux(running.ws, query, cut, "CloseStream") for cut in pieces)))

        for (laws, _), audio_S in zip(asyncio.run(run()), recordings, strict=True):
            assert laws.words == [word.text for word in solo(audio_S)]
            assert laws.turn >= 1


def test_force_end_turn_ends_the_turn_with_its_last_word() -> None:
    audio_S = np.concatenate([sound_of("fox", 5), sound_of("dog", 4)])
    with serving(ScriptRunner()) as running:
        laws, received = asyncio.run(
            flux(running.ws, "&eot_threshold=1.0", [audio_S], "ForceEndTurn", "ForceEndTurn", "CloseStream")
        )
    assert laws.words == ["fox", "dog"]
    assert [message["trigger"] for message in received if message.get("event") == "EndOfTurn"] == ["manual"]
