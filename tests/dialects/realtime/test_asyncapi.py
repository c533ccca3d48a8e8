"""The AsyncAPI file matches the dialects of `/v1/realtime`: each of its examples is accepted, or sent exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.server.test_asyncapi import FULL, examples

from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Action, CloseCode, Dialect, Send
from slipstream.dialects.realtime.transcription import TranscriptionDialect
from slipstream.dialects.realtime.vllm import VllmDialect
from slipstream.events import EndOfTurn, Flushed, MarkerReached, OpenWord, StartOfTurn, Step, Word

INFO = StreamInfo("tiny", 0.5, 0.08)
REQUEST = StreamRequest(
    Models({"tiny": INFO}), [("intent", "transcription")], {}, "3f2a9c0d71e84b56", 1_700_000_000, 14_400
)
WORD = Word("hello", 1.5, 2.0, 0.9)
TURN = [StartOfTurn(1.5), OpenWord("hello", 1.5, 0.9), EndOfTurn(2.5), WORD, Flushed(2.5, 0.01), Step(94, (), 0)]


def sent(actions: Iterable[Action]) -> list[Any]:
    return [json.loads(action.message) for action in actions if isinstance(action, Send)]


def first_of_each_kind(messages: list[Any], dialect: Dialect) -> list[Any]:
    error = dialect.error(FULL, CloseCode.TRY_LATER)
    assert error is not None
    first: dict[str, Any] = {}
    for message in [*messages, json.loads(error)]:
        first.setdefault(message["type"], message)
    return list(first.values())


def test_openais_messages() -> None:
    dialect = TranscriptionDialect(REQUEST)
    messages = sent(dialect.open())
    update, *_ = examples("sendRealtime")
    update["session"]["audio"]["input"] = {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}}
    messages += sent(dialect.receive(json.dumps(update)))
    messages += [message for event in TURN for message in sent(dialect.handle(event, 0))]
    messages += sent(dialect.receive('{"type": "input_audio_buffer.clear"}'))
    assert examples("receiveRealtime") == first_of_each_kind(messages, dialect)


def test_vllms_messages() -> None:
    dialect = VllmDialect(REQUEST)
    messages = sent(dialect.open())
    update, *_ = examples("sendVllm")
    for message in (json.dumps(update), '{"type": "input_audio_buffer.commit"}'):
        messages += sent(dialect.receive(message))
    messages += [m for event in (Step(25, (), 0), WORD, MarkerReached(1)) for m in sent(dialect.handle(event, 0))]
    assert examples("receiveVllm") == first_of_each_kind(messages, dialect)


def test_messages_of_the_clients() -> None:
    for make, operation, count in ((TranscriptionDialect, "sendRealtime", 5), (VllmDialect, "sendVllm", 3)):
        dialect, payloads = make(REQUEST), examples(operation)
        assert len(payloads) == count
        for payload in payloads:
            assert all(message["type"] != "error" for message in sent(dialect.receive(json.dumps(payload))))
