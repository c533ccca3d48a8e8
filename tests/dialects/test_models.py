"""The models of a server, and the requests that choose one."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.dialects.models import Models, StreamRequest, UnknownModel
from slipstream.errors import ConfigError
from slipstream.server.served import ServedModel, read_models


def test_the_first_model_is_the_default() -> None:
    models = Models({"small": 1, "large": 2})
    assert (models[None], models[""], models["large"], models.default) == (1, 1, 2, "small")
    assert list(models) == ["small", "large"]


def test_an_unknown_model_is_an_error_unless_any_is_accepted() -> None:
    with pytest.raises(UnknownModel, match="unknown model 'whisper-1': this server has small, large"):
        Models({"small": 1, "large": 2})["whisper-1"]
    assert Models({"small": 1, "large": 2}, accept_any=True)["whisper-1"] == 1


def test_query_parameters_may_occur_several_times() -> None:
    request = StreamRequest(Models({}.fromkeys(["tiny"], None)), [("keyterm", "a"), ("keyterm", "b"), ("x", "1")])  # type: ignore[arg-type]
    assert request.all("keyterm") == ["a", "b"]
    assert (request.get("keyterm"), request.get("x"), request.get("y", "0")) == ("b", "1", "0")


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
