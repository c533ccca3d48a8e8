"""Every field of a transcription request: what it means, and what is refused."""

from __future__ import annotations

import pytest

from slipstream.dialects.models import Models, StreamInfo
from slipstream.server.uploads.openai_request import Hints, TranscriptionRequest, parse_request
from slipstream.server.uploads.protocol import UploadError

MODELS = Models({name: StreamInfo(name, 0.5, 0.08) for name in ("tiny", "large")})


def parse(*fields: tuple[str, str]) -> TranscriptionRequest:
    return parse_request(fields, MODELS)


def test_a_form_without_fields() -> None:
    assert parse() == TranscriptionRequest("tiny")


def test_every_field() -> None:
    assert parse(
        ("model", "large"),
        ("response_format", "verbose_json"),
        ("stream", "false"),
        ("timestamp_granularities[]", "word"),
        ("timestamp_granularities[]", "segment"),
        ("temperature", "0.4"),
        ("language", "en"),
        ("languages[]", "fr-CA"),
        ("prompt", "Names: Ångström"),
        ("keywords[]", "Kyutai"),
        ("keywords[]", "Mimi"),
        ("chunking_strategy", "auto"),
        ("known_speaker_names[]", "agent"),
        ("known_speaker_references[]", "data:audio/wav;base64,AAAA"),
        ("hotwords", "Moshi, Hibiki"),
    ) == TranscriptionRequest(
        "large",
        "verbose_json",
        words=True,
        temperature=0.4,
        hints=Hints(("en", "fr-CA"), "Names: Ångström", ("Kyutai", "Mimi", "Moshi", "Hibiki")),
    )


@pytest.mark.parametrize(
    "fields",
    [
        [("chunking_strategy", '{"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 300}')],
        [("chunking_strategy[type]", "server_vad"), ("chunking_strategy[threshold]", "0.4")],
        [("language", ""), ("temperature", ""), ("model", "")],
        [("stream", "FALSE"), ("include[]", "")],
    ],
)
def test_fields_without_effect(fields: list[tuple[str, str]]) -> None:
    assert parse(*fields) == TranscriptionRequest("tiny")


def test_lists_without_brackets() -> None:
    assert parse(("include", "logprobs"), ("keywords", "a")).logprobs
    assert parse(("timestamp_granularities", "word"), ("response_format", "verbose_json")).segments is False


@pytest.mark.parametrize(
    ("fields", "status", "field", "wrong"),
    [
        ([("model", "whisper-1")], 404, "model", "unknown model 'whisper-1': this server has tiny, large"),
        ([("model", "tiny"), ("model", "large")], 400, "model", "model occurs 2 times: expected one value"),
        (
            [("response_format", "xml")],
            400,
            "response_format",
            "response_format='xml': expected one of json, text, srt",
        ),
        (
            [("response_format", "diarized_json")],
            400,
            "response_format",
            "response_format=diarized_json is not available: no model of this server distinguishes speakers; choose",
        ),
        ([("stream", "maybe")], 400, "stream", "stream='maybe': expected true or false"),
        (
            [("stream", "true"), ("response_format", "srt")],
            400,
            "stream",
            "stream=true is not available with response_",
        ),
        ([("temperature", "1.5")], 400, "temperature", "temperature='1.5': expected a number from 0 to 1"),
        ([("temperature", "nan")], 400, "temperature", "temperature='nan': expected a number from 0 to 1"),
        ([("temperature", "9" * 400)], 400, "temperature", "temperature='999"),
        (
            [("language", "english")],
            400,
            "language",
            "'english' is no language: expected an ISO 639-1 code such as 'en'",
        ),
        ([("languages[]", "e")], 400, "languages", "'e' is no language"),
        ([("timestamp_granularities[]", "word")], 400, "timestamp_granularities", "timestamp_granularities[] needs"),
        (
            [("timestamp_granularities[]", "phone"), ("response_format", "verbose_json")],
            400,
            "timestamp_granularities",
            "timestamp_granularities='phone': expected one of word, segment",
        ),
        ([("include[]", "tokens")], 400, "include", "include='tokens': expected one of logprobs"),
        ([("include[]", "logprobs"), ("response_format", "text")], 400, "include", "include[]=logprobs needs"),
        ([("chunking_strategy", "none")], 400, "chunking_strategy", "chunking_strategy: expected 'auto' or an object"),
        ([("chunking_strategy", "[" * 100_000)], 400, "chunking_strategy", "chunking_strategy: expected 'auto' or"),
        ([("chunking_strategy", "7")], 400, "chunking_strategy", "chunking_strategy: expected 'auto' or an object"),
        (
            [("chunking_strategy", '{"type": "server_vad", "threshold": []}')],
            400,
            "chunking_strategy.threshold",
            "chunking_strategy.threshold=[]: expected a number from 0 to 1",
        ),
        (
            [("known_speaker_names[]", "x")] * 5,
            400,
            "known_speaker_names",
            "known_speaker_names has 5 values: expected",
        ),
    ],
)
def test_invalid_requests_are_refused(fields: list[tuple[str, str]], status: int, field: str, wrong: str) -> None:
    with pytest.raises(UploadError) as raised:
        parse(*fields)
    error = raised.value
    assert (error.status, error.field, error.reason[: len(wrong)]) == (status, field, wrong)


def test_any_model_where_the_server_accepts_it() -> None:
    models = Models({"tiny": StreamInfo("tiny", 0.5, 0.08)}, accept_any=True)
    assert parse_request([("model", "whisper-1")], models).model == "tiny"
