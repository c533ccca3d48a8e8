"""The Wyoming dialect, without a connection."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects.sequences import messages, sequences, state_after

from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Action, Audio, Finish, Open, ProtocolError, Send
from slipstream.dialects.wyoming import KNOWN, ORDER, WyomingDialect, WyomingOptions
from slipstream.dialects.wyoming_events import MAX_JSON_BYTES, EventReader, WyomingEvent
from slipstream.engine.turns import TurnOptions
from slipstream.events import EndOfTurn, Event, Final, PartialWord, Turn, Word

INFO = StreamInfo("tiny", 0.5, 0.08)
FORMAT = {"rate": 16_000, "width": 2, "channels": 1}


def dialect(own_vad: bool = True) -> WyomingDialect:
    return WyomingDialect(StreamRequest(Models({"tiny": INFO})), WyomingOptions(own_vad=own_vad))


def wire(type: str, payload: bytes = b"", **data: object) -> bytes:
    """An event as the wyoming package writes it."""
    body = json.dumps(data).encode() if data else b""
    head = {"type": type, "version": "1", "data_length": len(body), "payload_length": len(payload)}
    return json.dumps({key: value for key, value in head.items() if value}).encode() + b"\n" + body + payload


SAMPLES = {
    "describe": wire("describe"),
    "ping": wire("ping", text="a"),
    "select-program": wire("select-program", name="slipstream"),
    "transcribe": wire("transcribe", language="en"),
    "audio-start": wire("audio-start", **FORMAT),
    "audio-chunk": wire("audio-chunk", b"\0\0" * 320, **FORMAT),
    "audio-stop": wire("audio-stop", timestamp=None),
}


def sent(actions: Iterable[Action]) -> list[WyomingEvent]:
    data = b"".join(action.message for action in actions if isinstance(action, Send) and action.message)  # type: ignore[misc]
    return [event for event in EventReader().push(data) if isinstance(event, WyomingEvent)]


def test_the_samples_cover_the_table() -> None:
    assert messages(ORDER) == sorted(SAMPLES) == sorted(KNOWN)


@given(st.data())
def test_the_table_of_legal_events(data: st.DataObject) -> None:
    sequence = data.draw(sequences(ORDER))
    stream = dialect()
    for type in sequence:
        list(stream.receive(SAMPLES[type]))
    state = state_after(ORDER, sequence)
    for type in set(SAMPLES) - set(ORDER[state]):
        with pytest.raises(ProtocolError, match=f"'{type}' in the state '{state}'"):
            list(stream.receive(SAMPLES[type]))


@given(st.data())
def test_actions_do_not_depend_on_how_the_bytes_are_cut(data: st.DataObject) -> None:
    noise = np.random.default_rng(0).integers(-9000, 9000, 4000).astype("<i2").tobytes()
    stream = wire("transcribe", name="tiny") + wire("unknown", b"payload", a=1) + wire("audio-start", **FORMAT)
    stream += wire("audio-chunk", noise[:5001], **FORMAT) + wire("ping", b"\n{}\n", text="é")
    stream += wire("audio-chunk", noise[5001:], **FORMAT) + wire("audio-stop")

    def run(pieces: list[bytes]) -> tuple[list[Action], bytes]:
        made = dialect()
        actions = [action for piece in pieces for action in made.receive(piece)]
        audio = b"".join(action.pcm_S.tobytes() for action in actions if isinstance(action, Audio))
        return [action for action in actions if not isinstance(action, Audio)], audio

    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    others, audio = run(pieces)
    assert (others, audio) == run([stream])
    assert [type(action) for action in others] == [Open, Send, Finish]
    assert len(audio) == 4 * 6000


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.sampled_from(list(SAMPLES.values())), max_size=6))
def test_any_bytes_are_actions_or_a_clean_error(pieces: list[bytes]) -> None:
    stream = dialect()
    try:
        for piece in pieces:
            list(stream.receive(piece))
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"x" * (MAX_JSON_BYTES + 1), "a line of an event has at most 65536 bytes"),
        (b"[" * 5000 + b"\n", "not a Wyoming event"),
        (b"[]\n", "expected a JSON object, got list"),
        (b'{"type": 1}\n', "an event has a type"),
        (b'{"type": "x", "data": []}\n', ""),
        (b'{"type": "x", "data": [1]}\n', "data, which is an object"),
        (b'{"type": "x", "data_length": 65537}\n', "data_length=65537: expected 0 to 65536"),
        (b'{"type": "x", "data_length": -1}\n', "data_length=-1"),
        (b'{"type": "x", "payload_length": 1e9}\n', "payload_length=1000000000.0: expected 0 to 4194304"),
        (wire("audio-start", rate="fast", width=2, channels=1), "rate='fast': expected a whole number"),
        (wire("audio-start", rate=16_000, width=2, channels=9), "channels=9: expected 1 to 8"),
        (wire("transcribe", name=["a"]), "expected the name of a model"),
        (wire("transcribe", vad_sensitivity="high"), "expected default, relaxed or aggressive"),
    ],
)
def test_errors_name_the_problem(data: bytes, says: str) -> None:
    if not says:
        list(dialect().receive(data))
        return
    with pytest.raises(ProtocolError, match=says):
        list(dialect().receive(data))


@pytest.mark.parametrize(
    ("sensitivity", "turns"),
    [
        ("default", TurnOptions()),
        ("aggressive", replace(TurnOptions(), head=1, quiet_seconds=0.48)),
        ("relaxed", replace(TurnOptions(), end_above=0.8, quiet_seconds=1.28)),
    ],
)
def test_the_sensitivity_sets_when_a_turn_ends(sensitivity: str, turns: TurnOptions) -> None:
    stream = dialect()
    list(stream.receive(wire("transcribe", vad_sensitivity=sensitivity)))
    opened = next(iter(stream.receive(SAMPLES["audio-start"])))
    assert isinstance(opened, Open)
    assert opened.options.turns is not None
    assert opened.options.turns.quiet_seconds == pytest.approx(turns.quiet_seconds)
    assert replace(opened.options.turns, quiet_seconds=turns.quiet_seconds) == turns
    assert opened.options.low_latency


def test_without_our_voice_activity_detection_turns_change_nothing() -> None:
    events: list[Event] = [
        PartialWord("he", 0.5),
        Word("hello", 0.5, 0.9),
        EndOfTurn(2.0),
        Turn(0.5, 0.9),
        Word("you", 3.0, 3.2),
        Final(4.0, 0.1),
    ]
    stream = dialect(own_vad=False)
    said = sent(action for event in events for action in stream.handle(event, 0))
    assert [event.type for event in said] == [
        "transcript-start",
        "transcript-chunk",
        "transcript-chunk",
        "transcript",
        "transcript-stop",
    ]
    assert said[3].data == {"text": "hello you"}
