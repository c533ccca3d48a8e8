"""The AsyncAPI file matches the code: each of its examples is decoded, or encoded, exactly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest

from slipstream.audio import RawFormat
from slipstream.events import (
    EndOfTurn,
    Event,
    Final,
    MarkerReached,
    OpenWord,
    PartialWord,
    Ready,
    Recovered,
    Step,
    Turn,
    Word,
)
from slipstream.server.dialects import DIALECTS
from slipstream.server.dialects.gradium import GradiumDialect
from slipstream.server.dialects.kyutai import KyutaiDialect
from slipstream.server.dialects.plain import PlainDialect, parse_format
from slipstream.server.dialects.vosk import VoskDialect
from slipstream.server.http import app
from slipstream.server.models import Models, StreamInfo, StreamRequest
from slipstream.server.protocol import CloseCode, Dialect, ProtocolError, Send

yaml = pytest.importorskip("yaml")
API = yaml.safe_load((Path(app.__file__).parents[1] / "api" / "asyncapi.yaml").read_text(encoding="utf-8"))
FULL = "all 8 slots are in use"
KYUTAI: list[Event] = [
    Ready(),
    Step(7, (0.5, 0.25, 0.125, 0.0), 480),
    OpenWord("hello", 1.5, 0.9),
    Word("hello", 1.5, 2.0, 0.9),
    MarkerReached(1),
]
PLAIN: list[Event] = [
    Ready(),
    Step(2, (0.5, 0.25), 960),
    PartialWord("hel", 1.5),
    Word("hello", 1.5, 2.0, 0.9),
    EndOfTurn(4.0),
    Turn(1.5, 2.0),
    MarkerReached(3),
    Recovered(61.5, "mute"),
    Final(2.5, 0.25),
]


def kyutai() -> KyutaiDialect:
    return KyutaiDialect()


def plain() -> PlainDialect:
    return PlainDialect(RawFormat("pcm_s16le", 24_000), StreamInfo("tiny", 0.5, 0.08), "3f2a9c0d71e84b56")


def examples(operation: str) -> list[Any]:
    names = [reference["$ref"].rpartition("/")[2] for reference in API["operations"][operation]["messages"]]
    return [example["payload"] for name in names for example in API["components"]["messages"][name].get("examples", [])]


def told(dialect: Dialect, events: list[Event]) -> list[Any]:
    actions = [action for event in events for action in dialect.handle(event, 0)]
    messages = [action.message for action in actions if isinstance(action, Send)]
    messages += [dialect.queued(2), dialect.error(FULL, CloseCode.TRY_LATER)]
    return [json.loads(m) if isinstance(m, str) else msgpack.unpackb(m) for m in messages if m is not None]


def in_order(messages: list[Any]) -> list[Any]:
    return sorted(messages, key=json.dumps)


def test_messages_of_the_server() -> None:
    assert in_order(examples("receiveKyutai")) == in_order(told(kyutai(), KYUTAI))
    assert in_order(examples("receivePlain")) == in_order(told(plain(), PLAIN))
    for kind, operation in ((kyutai(), "receiveKyutai"), (plain(), "receivePlain")):
        known = {example["type"]: list(example) for example in examples(operation)}
        for message in told(kind, KYUTAI if operation == "receiveKyutai" else PLAIN):
            assert list(message) == known[message["type"]]  # the fields' order, too


def test_messages_of_the_client() -> None:
    for payload in examples("sendKyutai"):
        list(kyutai().receive(msgpack.packb(payload)))
    for payload in examples("sendPlain"):
        list(plain().receive(json.dumps(payload)))
    assert len(examples("sendKyutai")) == 4
    assert len(examples("sendPlain")) == 3


def gradium() -> GradiumDialect:
    return GradiumDialect(StreamRequest(Models({"tiny": StreamInfo("tiny", 0.48, 0.08)}), id="3f2a9c0d71e84b56"))


def vosk() -> VoskDialect:
    return VoskDialect(StreamRequest(Models({"tiny": StreamInfo("tiny", 0.48, 0.08)})))


def test_messages_of_gradiums_clients_and_their_answers() -> None:
    dialect = gradium()
    for payload in examples("sendGradium"):
        list(dialect.receive(json.dumps(payload)))
    events = [Ready(), Step(7, (0.5, 0.25), 480), *KYUTAI[2:4], MarkerReached(0), Final(2.5, 0.25)]
    assert in_order(examples("receiveGradium")) == in_order(told(dialect, events))


def test_messages_of_vosks_clients_and_their_answers() -> None:
    dialect = vosk()
    assert [list(payload) for payload in examples("sendVosk")] == [["config"], ["reset"], ["eof"]]
    list(dialect.receive(json.dumps(examples("sendVosk")[0])))
    answers = []
    for event in (Word("hello", 1.5, 2.0, 0.9), Turn(1.5, 2.0)):
        list(dialect.handle(event, 0))
    answers += [action.message for action in dialect.receive(b"") if isinstance(action, Send)]
    for event in (Word("hello", 1.5, 2.0, 0.9), PartialWord("wor", 2.5)):
        list(dialect.handle(event, 0))
    answers += [action.message for action in dialect.receive(b"") if isinstance(action, Send)]
    answers.append(dialect.error(FULL, CloseCode.TRY_LATER))
    assert in_order(examples("receiveVosk")) == in_order([json.loads(answer) for answer in answers])
    for payload in examples("sendVosk")[1:]:
        list(dialect.receive(json.dumps(payload)))


def test_close_codes_are_all_described() -> None:
    for code in CloseCode:
        assert str(int(code)) in API["info"]["description"]


def test_the_addresses_are_those_of_the_server() -> None:
    addresses = {channel["address"].partition("?")[0] for channel in API["channels"].values()}
    assert addresses == set(DIALECTS)
    lowest, highest = re.findall(r"\d+", API["channels"]["plain"]["parameters"]["sample_rate"]["description"])
    for rate in (lowest, highest):
        parse_format({"sample_rate": rate})
    for rate in (int(lowest) - 1, int(highest) + 1):
        with pytest.raises(ProtocolError):
            parse_format({"sample_rate": str(rate)})
    for encoding in API["channels"]["plain"]["parameters"]["encoding"]["enum"]:
        parse_format({"encoding": encoding})
