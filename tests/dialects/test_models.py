"""The models of a server, and the requests that choose one."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.dialects import DIALECTS
from slipstream.dialects.models import Models, SpeechInfo, StreamInfo, StreamRequest, UnknownModel
from slipstream.dialects.protocol import ProtocolError
from slipstream.dialects.speech import find_speech_dialect
from slipstream.errors import ConfigError
from slipstream.server.served import ServedModel, read_models

MODELS = Models({"tiny": StreamInfo("tiny", 0.5, 0.08)})
RAW = [("encoding", "linear16"), ("sample_rate", "16000")]


def test_the_first_model_is_the_default() -> None:
    models = Models({"small": 1, "large": 2})
    assert (models[None], models[""], models["large"], models.default) == (1, 1, 2, "small")
    assert list(models) == ["small", "large"]


def test_an_unknown_model_is_an_error_unless_any_is_accepted() -> None:
    with pytest.raises(UnknownModel, match="unknown model 'whisper-1': this server has small, large"):
        Models({"small": 1, "large": 2})["whisper-1"]
    assert Models({"small": 1, "large": 2}, accept_any=True)["whisper-1"] == 1


def test_query_parameters_may_occur_several_times() -> None:
    request = StreamRequest(MODELS, [("keyterm", "a"), ("keyterm", "b"), ("x", "1")])
    assert request.all("keyterm") == ["a", "b"]
    assert (request.get("x"), request.get("y", "0"), request.get("z")) == ("1", "0", None)
    with pytest.raises(ProtocolError, match="keyterm: expected one value, got 2"):
        request.get("keyterm")


def test_unknown_parameters_are_refused_with_the_known_ones() -> None:
    query = [("id", "1"), ("word", "a"), ("word", "b"), ("auth_id", "secret")]
    StreamRequest(MODELS, query).check_names("id", repeatable=("word",))
    StreamRequest(MODELS).check_names()
    with pytest.raises(ProtocolError, match="unknown parameter 'wrod': expected id, word, auth_id"):
        StreamRequest(MODELS, [*query, ("wrod", "c")]).check_names("id", repeatable=("word",))
    for name in ("id", "auth_id"):
        with pytest.raises(ProtocolError, match=f"{name}: expected one value, got 2"):
            StreamRequest(MODELS, [*query, (name, "2")]).check_names("id", repeatable=("word",))


@pytest.mark.parametrize("path", DIALECTS)
def test_only_our_own_addresses_refuse_parameters_that_are_unknown(path: str) -> None:
    needed = {"/v1/calls": [("id", "CA1")], "/v1/listen": RAW, "/v2/listen": RAW}.get(path, [])
    request = StreamRequest(MODELS, [*needed, ("utm_source", "a"), ("utm_source", "b")])
    if path in ("/v1/stream", "/v1/calls"):
        with pytest.raises(ProtocolError, match="unknown parameter 'utm_source': expected"):
            DIALECTS[path](request)
    else:
        DIALECTS[path](request)


@pytest.mark.parametrize("path", ["/api/tts_streaming", "/v1/text-to-speech/ann/stream-input"])
def test_speech_is_not_opened_with_two_values_of_a_parameter(path: str) -> None:
    opened = find_speech_dialect(path)
    assert opened is not None
    opened([("voice", "ann"), ("unknown", "a")], SpeechInfo("tiny"))
    with pytest.raises(ProtocolError, match="voice: expected one value, got 2"):
        opened([("voice", "ann"), ("voice", "bob")], SpeechInfo("tiny"))


def test_a_model_may_be_named() -> None:
    assert ServedModel.parse("tiny", None, "auto", "cpu") == ServedModel("tiny", "", None, "auto", "cpu")
    assert ServedModel.parse("fast=./folder", 4, "onnx", "cpu") == ServedModel("./folder", "fast", 4, "onnx", "cpu")
    assert ServedModel.parse("./a/b=c", None, "auto", "auto").model == "./a/b=c"


def test_a_file_of_models(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        '[fast]\nmodel = "tiny"\nslots = 3\n\n["stt-1b"]\nmodel = "kyutai/stt-1b-en_fr"\ndevice = "cuda:0"\n'
        'kv_cache = "int8"\n'
    )
    assert read_models(file) == [
        ServedModel("tiny", "fast", 3),
        ServedModel("kyutai/stt-1b-en_fr", "stt-1b", 8, "auto", "cuda:0", "int8"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no models"),
        ('fast = "tiny"', "fast: expected a section"),
        ("[fast]\nslots = 3", r"\[fast\] lacks model"),
        ('[fast]\nmodel = "tiny"\nslot = 3', r"\[fast\].*slot"),
        ('[fast]\nmodel = "tiny"\nslots = 0', r"\[fast\].*slots"),
        ('[fast]\nmodel = "tiny"\nkv_cache = "int4"', r"\[fast\].*kv_cache"),
    ],
)
def test_an_invalid_file_of_models(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_models(file)
