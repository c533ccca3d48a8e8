"""The AsyncAPI file matches the code: each of its examples is decoded, or encoded, exactly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from slipstream.audio import RawFormat
from slipstream.dialects import DIALECTS
from slipstream.dialects.calls import CallsDialect
from slipstream.dialects.deepgram import v1
from slipstream.dialects.deepgram.flux import FluxDialect
from slipstream.dialects.deepgram.parameters import ENCODINGS, FLUX_ENCODINGS, Hints
from slipstream.dialects.deepgram.turns import Thresholds
from slipstream.dialects.deepgram.v1 import DeepgramDialect
from slipstream.dialects.formats import PcmStream
from slipstream.dialects.gradium import GradiumDialect
from slipstream.dialects.kyutai import KyutaiDialect
from slipstream.dialects.models import Models, SpeechInfo, StreamInfo, StreamRequest
from slipstream.dialects.plain import PlainDialect, parse_format
from slipstream.dialects.protocol import CloseCode, Dialect, ProtocolError, Publish, Send
from slipstream.dialects.speech import SPEECH_DIALECTS
from slipstream.dialects.speech.elevenlabs import ElevenLabsSpeech
from slipstream.dialects.speech.protocol import Begin, EndText, FlushText, Spoken, Text
from slipstream.dialects.twilio import TwilioDialect
from slipstream.dialects.vosk import VoskDialect
from slipstream.engine.reading import Audio
from slipstream.events import (
    EndOfTurn,
    Event,
    Final,
    Flushed,
    History,
    MarkerReached,
    OpenWord,
    PartialWord,
    Ready,
    Recovered,
    Step,
    Turn,
    Word,
)
from slipstream.server.http import app

yaml = pytest.importorskip("yaml")
API = yaml.safe_load((Path(app.__file__).parents[1] / "api" / "asyncapi.yaml").read_text(encoding="utf-8"))
FULL = "all 8 slots are in use"
KYUTAI: list[Event] = [
    Ready(),
    Step(7, (0.5, 0.25, 0.125, 0.0), 480, 0.125),
    OpenWord("hello", 1.5, 0.9),
    Word("hello", 1.5, 2.0, 0.9),
    MarkerReached(1),
]
PLAIN: list[Event] = [
    Ready(),
    Step(2, (0.5, 0.25), 960, 0.25),
    PartialWord("hel", 1.5),
    Word("hello", 1.5, 2.0, 0.9),
    EndOfTurn(4.0),
    Turn(1.5, 2.0),
    MarkerReached(3),
    Recovered(61.5, "mute"),
    History(24, "AYzqTUsMAgDmAgIA"),
    Final(2.5, 0.25),
]


def kyutai() -> KyutaiDialect:
    return KyutaiDialect()


def plain() -> PlainDialect:
    return PlainDialect(RawFormat("pcm_s16le", 24_000), StreamInfo("tiny", 0.5, 0.08), "3f2a9c0d71e84b56")


MODEL = StreamInfo("tiny", 0.5, 0.08)
UUID = "2e3bac48-6604-5a4c-a6ff-d8a1b64007f4"
V1: list[Event] = [
    OpenWord("Hello.", 0.5, 0.9),
    Word("Hello.", 0.5, 1.0, 0.9),
    Step(13, (0.9, 0.9, 0.9, 0.9), 0, 0.9),
    Flushed(1.04, 0.1),
    Step(25, (0.9, 0.9, 0.9, 0.9), 0, 0.9),
    Final(2.5, 0.25),
]
V1_REQUESTS = [{"type": "Configure", "keyterms": ["Kyutai"]}, {"type": "Stop"}]
FLUX: list[Event] = [
    OpenWord("Hello.", 0.5, 0.9),
    Word("Hello.", 0.5, 1.0, 0.9),
    Step(14, (0.6, 0.6, 0.6, 0.6), 0, 0.6),
    Flushed(1.12, 0.1),
    Step(15, (0.1, 0.1, 0.1, 0.1), 0, 0.1),
    Step(16, (0.9, 0.9, 0.9, 0.9), 0, 0.9),
    Flushed(1.28, 0.1),
    Step(17, (0.9, 0.9, 0.9, 0.9), 0, 0.9),
    Flushed(1.36, 0.1),
    *(Step(index, (0.9, 0.9, 0.9, 0.9), 0, 0.9) for index in range(18, 21)),
]
FLUX_REQUESTS = [
    {"type": "Configure", "thresholds": {"eot_threshold": 0.8}},
    {"type": "Configure", "thresholds": {"eot_threshold": 2}},
]


def deepgram_v1() -> DeepgramDialect:
    options = v1.Options(interim=True, punctuate=True, utterance_end=1.0, vad_events=True)
    decoder = PcmStream(RawFormat("pcm_s16le", 16_000), 24_000)
    dialect = DeepgramDialect(options, decoder, 1, MODEL, UUID, "2026-11-26T20:58:08.742Z")
    list(dialect.open())
    return dialect


def deepgram_flux() -> FluxDialect:
    decoder = PcmStream(RawFormat("pcm_s16le", 16_000), 24_000)
    return FluxDialect(Thresholds(0.7, 0.5), Hints(), decoder, MODEL, UUID)


def told_by_deepgram(dialect: Dialect, requests: list[Any], events: list[Event]) -> list[Any]:
    actions = list(dialect.open()) if isinstance(dialect, FluxDialect) else []
    actions += [action for event in events for action in dialect.handle(event, 0)]
    actions += [action for request in requests for action in dialect.receive(json.dumps(request))]
    messages = [action.message for action in actions if isinstance(action, Send)]
    messages += [error] if (error := dialect.error(FULL, CloseCode.TRY_LATER)) is not None else []
    return [json.loads(message) for message in messages]


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


@pytest.mark.parametrize(
    ("name", "make", "requests", "events"),
    [("DeepgramV1", deepgram_v1, V1_REQUESTS, V1), ("Flux", deepgram_flux, FLUX_REQUESTS, FLUX)],
)
def test_messages_of_deepgram(name: str, make: Any, requests: list[Any], events: list[Event]) -> None:
    expected = examples(f"receive{name}")
    assert in_order(expected) == in_order(told_by_deepgram(make(), requests, events))
    known = {(example["type"], example.get("event")): list(example) for example in expected}
    for message in told_by_deepgram(make(), requests, events):
        assert list(message) == known[message["type"], message.get("event")]  # the fields' order, too
    dialect = make()
    for payload in examples(f"send{name}"):
        list(dialect.receive(json.dumps(payload)))
    assert {payload["type"] for payload in examples(f"send{name}")} == dialect._order._table["open"].keys() - {"audio"}


@pytest.mark.parametrize(("channel", "encodings"), [("deepgramV1", ENCODINGS), ("flux", FLUX_ENCODINGS)])
def test_encodings_of_deepgram(channel: str, encodings: tuple[str, ...]) -> None:
    assert sorted(API["channels"][channel]["parameters"]["encoding"]["enum"]) == sorted(encodings)


def test_messages_of_twilio_and_of_a_call() -> None:
    dialect = TwilioDialect(StreamRequest(Models({"tiny": StreamInfo("tiny", 0.48, 0.08)})))
    events: list[Event] = [
        PartialWord("hel", 1.5),
        Word("hello", 1.5, 2.0, 0.9),
        EndOfTurn(4.0),
        Turn(1.5, 2.0),
        Step(125, (0.5,), 0),
        Final(6.5, 0.1),
    ]
    actions = [action for payload in examples("sendTwilio") for action in dialect.receive(json.dumps(payload))]
    actions += [action for event in events for action in dialect.handle(event, 0)]
    published = [json.loads(action.message) for action in actions if isinstance(action, Publish)]
    published.append(json.loads(CallsDialect("CA1").error(FULL, CloseCode.TRY_LATER)))
    assert in_order(examples("receiveCalls")) == in_order(published)


def test_messages_of_elevenlabs() -> None:
    dialect = ElevenLabsSpeech({"voice": "ann", "output_format": "pcm_24000"}, SpeechInfo("small"))
    actions = [action for payload in examples("sendElevenlabs") for action in dialect.receive(json.dumps(payload))]
    assert actions == [Begin("ann"), Text("Good mor"), Text("ning. "), FlushText(), EndText()]
    events = [Word("Hi", 0.0, 0.12), Audio(np.zeros(2, np.float32), 0.0), Spoken()]
    sent = [action.message for event in events for action in dialect.handle(event) if isinstance(action, Send)]
    sent.append(dialect.error(examples("receiveElevenlabs")[-1]["message"], CloseCode.INVALID_PAYLOAD))
    assert [json.loads(message) for message in sent] == examples("receiveElevenlabs")


def test_close_codes_are_all_described() -> None:
    for code in CloseCode:
        assert str(int(code)) in API["info"]["description"]


def test_the_addresses_are_those_of_the_server() -> None:
    addresses = {channel["address"].partition("?")[0] for channel in API["channels"].values()}
    assert addresses == {*DIALECTS, *SPEECH_DIALECTS}
    lowest, highest = re.findall(r"\d+", API["channels"]["plain"]["parameters"]["sample_rate"]["description"])
    for rate in (lowest, highest):
        parse_format({"sample_rate": rate})
    for rate in (int(lowest) - 1, int(highest) + 1):
        with pytest.raises(ProtocolError):
            parse_format({"sample_rate": str(rate)})
    for encoding in API["channels"]["plain"]["parameters"]["encoding"]["enum"]:
        parse_format({"encoding": encoding})
