"""Every dialect that has a name for a hint passes it to the session."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from slipstream.dialects import gradium, plain, vosk, wyoming
from slipstream.dialects.deepgram import flux, v1
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Action, Dialect, Message, Open, ProtocolError, SetHints
from slipstream.dialects.realtime.transcription import TranscriptionDialect
from slipstream.hints import Hints, Keyword
from slipstream.server.uploads.deepgram import DeepgramUpload
from slipstream.server.uploads.openai_request import parse_request

INFO = StreamInfo(model="tiny", delay_seconds=0.5, frame_seconds=0.08)
MODELS = Models({"tiny": INFO})


def request(*query: tuple[str, str], **headers: str) -> StreamRequest:
    return StreamRequest(MODELS, query, headers, "7f")


def opened(dialect: Dialect, *messages: Message) -> Hints:
    """The hints of the first session that a connection opens."""
    actions: list[Action] = list(dialect.open())
    for message in messages:
        actions += dialect.receive(message)
    return next(action.options.hints for action in actions if isinstance(action, Open))


def changed(dialect: Dialect, *messages: Message) -> list[Hints]:
    return [action.hints for message in messages for action in dialect.receive(message) if isinstance(action, SetHints)]


def test_plain() -> None:
    query = (("keyword", "Ngaio Marsh"), ("keyword", "Poirot:2"), ("prompt", "Dear"), ("language", "en"))
    hints = opened(plain.open_dialect(request(*query)))
    assert hints == Hints([Keyword("Ngaio Marsh"), Keyword("Poirot", 2.0)], "Dear", ["en"])
    for name, value, problem in (
        ("keyword", "Poirot:99", "weight=99"),
        ("alternatives", "many", "alternatives='many': expected a whole number"),
        ("alternatives", "0", "alternatives=0 must be a whole number from 1 to 8"),
        ("delay", "1", "delay='1': the model tiny has one delay, 0.5 s"),
    ):
        with pytest.raises(ProtocolError, match=problem):
            plain.open_dialect(request((name, value)))


def test_the_client_sends_all_hints_but_the_beam() -> None:
    hints = Hints([Keyword("Poirot", 2.0)], "Dear", ["en"], delay=1.5, alternatives=3)
    several = Models({"tiny": replace(INFO, delays=True)})
    assert opened(plain.open_dialect(StreamRequest(several, hints.query()))) == hints
    with pytest.raises(ProtocolError, match="delay='soon': expected a number of seconds"):
        plain.open_dialect(StreamRequest(several, [("delay", "soon")]))
    with pytest.raises(ProtocolError, match="delay=nan must be above 0"):
        plain.open_dialect(StreamRequest(several, [("delay", "nan")]))


def test_deepgram() -> None:
    query = (("keyterm", "Kyutai"), ("keywords", "moshi:2"), ("keywords", "no:-5"), ("language", "fr"))
    raw = (("encoding", "linear16"), ("sample_rate", "16000"))
    expected = Hints(["Kyutai", Keyword("moshi", 2.0)], languages=["fr"])
    stream = v1.open_dialect(request(*query, *raw))
    assert opened(stream, b"\0\0" * 800).phrases == expected.phrases
    (hints,) = changed(stream, json.dumps({"type": "Configure", "keyterms": ["Mimi"]}))
    assert hints.phrases == (Keyword("Mimi"), Keyword("moshi", 2.0))
    upload = DeepgramUpload(request(*query))
    assert upload.job is not None
    assert upload.job.options.hints.phrases == expected.phrases
    assert upload.job.options.hints.languages == ("fr",)


def test_flux() -> None:
    stream = flux.open_dialect(
        request(("keyterm", "Kyutai"), ("language_hint", "fr"), ("encoding", "linear16"), ("sample_rate", "16000"))
    )
    hints = opened(stream)
    assert (hints.phrases, hints.languages) == ((Keyword("Kyutai"),), ("fr",))
    (hints,) = changed(stream, json.dumps({"type": "Configure", "keyterms": ["Mimi"], "language_hints": ["en"]}))
    assert (hints.phrases, hints.languages) == ((Keyword("Mimi"),), ("en",))


def test_openai_uploads() -> None:
    fields = [("model", "tiny"), ("keywords[]", "Kyutai"), ("hotwords", "Mimi, Moshi"), ("prompt", "Dear")]
    fields += [("context_bias", "Hibiki,Ngaio_Marsh"), ("context_bias", "Poirot")]
    hints = parse_request([*fields, ("languages[]", "fr"), ("language", "en")], MODELS).options().hints
    assert [keyword.text for keyword in hints.phrases] == ["Kyutai", "Mimi", "Moshi", "Hibiki", "Ngaio Marsh", "Poirot"]
    assert (hints.prompt, hints.languages) == ("Dear", ("en", "fr"))


def test_openai_realtime() -> None:
    def update(**fields: object) -> str:
        session = {"type": "transcription", "audio": {"input": {"transcription": fields}}}
        return json.dumps({"type": "session.update", "session": session})

    stream = TranscriptionDialect(request())
    hints = opened(stream, update(keywords=["Kyutai"], prompt="Dear", language="fr"))
    assert (hints.phrases, hints.prompt, hints.languages) == ((Keyword("Kyutai"),), "Dear", ("fr",))
    (hints,) = changed(stream, update(keywords=["Mimi"]))
    assert hints.phrases == (Keyword("Mimi"),)


def test_openai_realtime_in_the_beta_format() -> None:
    session = {"input_audio_transcription": {"language": "fr", "prompt": "Dear"}}
    stream = TranscriptionDialect(request(**{"openai-beta": "realtime=v1"}))
    hints = opened(stream, json.dumps({"type": "transcription_session.update", "session": session}))
    assert (hints.prompt, hints.languages) == ("Dear", ("fr",))


def test_gradium() -> None:
    setup = {"type": "setup", "input_format": "pcm", "json_config": {"language": "fr"}}
    assert opened(gradium.open_dialect(request()), json.dumps(setup)).languages == ("fr",)


def test_delays_have_an_effect_on_a_model_with_several() -> None:
    several = Models({"tiny": replace(INFO, delays=True)})
    setup = {"type": "setup", "input_format": "pcm", "json_config": {"delay_in_frames": 16}}
    assert opened(gradium.open_dialect(StreamRequest(several)), json.dumps(setup)).delay == 1.28
    assert opened(gradium.open_dialect(request()), json.dumps(setup)).delay is None
    setup["json_config"] = {"delay_in_frames": 99}
    with pytest.raises(ProtocolError, match="whole number from 7 to 48"):
        opened(gradium.open_dialect(StreamRequest(several)), json.dumps(setup))
    session = {"type": "transcription", "audio": {"input": {"transcription": {"delay": "high"}}}}
    update = json.dumps({"type": "session.update", "session": session})
    assert opened(TranscriptionDialect(StreamRequest(several)), update).delay == 2.5
    assert opened(TranscriptionDialect(request()), update).delay is None


def test_vosk() -> None:
    config = json.dumps({"config": {"sample_rate": 8000, "phrase_list": ["Kyutai", "[unk]"]}})
    assert opened(vosk.open_dialect(request()), config, b"\0\0").phrases == (Keyword("Kyutai"),)


def test_wyoming() -> None:
    def event(kind: str, **data: object) -> bytes:
        return json.dumps({"type": kind, "data": data}).encode() + b"\n"

    stream = wyoming.WyomingDialect(request())
    start = event("audio-start", rate=16_000, width=2, channels=1)
    assert opened(stream, event("transcribe", language="fr"), start).languages == ("fr",)
