"""The documents list every key of a run's file, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from slipstream.data.options import DataOptions
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig, LMConfig, SEANetConfig
from slipstream.train.options import CodecRun, LMRun, TTSRun, read_run

ELSEWHERE = (CodecConfig, LMConfig, SEANetConfig)
"""Tables whose keys the documents leave to the classes."""


def test_the_documents_list_every_key() -> None:
    keys = _keys(CodecRun) | _keys(LMRun) | _keys(TTSRun)
    assert _documented() == keys


def _keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if tables and tables[0] not in ELSEWHERE and prefix != "phase.":  # whose tables are those of data
            keys |= _keys(tables[0], f"{prefix}{name}.")
        else:
            keys.add(prefix + name)
    return keys


def _documented() -> set[str]:
    page = Path("docs/reference/training-keys.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `.*\|$", page.partition("## The keys of a run's file")[2], flags=re.MULTILINE)
    keys: set[str] = set()
    for row in rows:
        first, _, meaning = row.strip("|").split("|")
        names = re.findall(r"`([^`]+)`", first)
        if names[0].endswith(".*"):
            names = [names[0].removesuffix("*") + name for name in re.findall(r"`([^`]+)`", meaning)]
        keys |= set(names)
    return keys


def test_cropping_a_dataset_that_is_not_drawn_is_an_error() -> None:
    with pytest.raises(ValidationError, match="crop names other, which weights do not draw from"):
        DataOptions(packs=(Path("pack"),), weights={"own": 1.0}, crop={"own": 0.5, "other": 0.5})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"packs": []}, "at least 1 item"),
        ({"weights": {}}, "at least 1 item"),
        ({"weights": {"own": 0.0}}, "greater than 0"),
        ({"gaps": [[0.1, 1.0]]}, "1 gaps and 3 gap_shares"),
        ({"gaps": [[1.0, 0.1]], "gap_shares": [1.0]}, r"\[1.0, 0.1\] is no range"),
        ({"delay": [10, 3]}, r"\[10, 3\] is no range"),
    ],
)
def test_data_that_cannot_be_drawn_is_an_error(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataOptions.model_validate({"packs": ["pack"], "weights": {"own": 1.0}} | data)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"train_codec": True, "model": {"base": "tiny"}}, "with train_codec, start from model.init"),
        ({"model": {"base": "tiny", "init": "tiny"}}, "this one starts from model.base"),
        ({"model": {}}, "model.base is missing"),
        ({"train_codec": True, "model": {"init": "tiny"}, "lora": {}}, "leave train_codec out"),
        ({"train_codec": True, "model": {"init": "tiny"}, "pause_heads_only": True}, "leave train_codec out"),
        ({"train_codec": True, "model": {"init": "tiny", "pause_heads": 4}}, "leave train_codec out"),
        ({"lookaheads": [10, 50], "model": {"base": "tiny"}}, "lookaheads are for train_codec"),
        ({"model": {"base": "tiny"}, "lora": {}, "pause_heads_only": True}, "leave lora out"),
        ({"train_codec": True, "model": {"init": "tiny"}}, "quantiser.start = 200, but the run has 4 steps"),
        (
            {"run": {"out": "x", "steps": 4, "encoder_rate": 0.5}, "model": {"base": "tiny"}},
            "encoder_rate is for train_codec",
        ),
        ({"phase": [{"until": 1, "encoder_rate": 0}], "model": {"base": "tiny"}}, "encoder_rate is for train_codec"),
        ({"run": {"out": "x", "steps": 4, "device": "gpu"}}, "'gpu' is not a device of PyTorch"),
    ],
)
def test_a_run_that_would_ignore_a_part_of_its_file_is_refused(run: dict[str, object], message: str) -> None:
    shared = {"run": {"out": "x", "steps": 4}, "data": {"packs": ["pack"], "weights": {"own": 1.0}}}
    with pytest.raises(ValidationError, match=message):
        LMRun.model_validate(shared | run)


def test_a_codec_run_refuses_model_base() -> None:
    shared = {"run": {"out": "x", "steps": 4}, "data": {"packs": ["pack"], "weights": {"own": 1.0}}}
    with pytest.raises(ValidationError, match=r"model\.init"):
        CodecRun.model_validate(shared | {"model": {"base": "tiny"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {}}, "give model.base, or model.codec and model.lm"),
        ({"model": {"base": "own", "audio_delay": 2.0}}, "model.base has all of the model: leave out audio_delay"),
        ({"data": {"delay": 6}}, r"data.delay is not for speech: \[data\] takes packs, weights"),
        ({"phase": [{"until": 1, "text_mask": 0.5}]}, r"phase.text_mask is not for speech: \[\[phase\]\] takes until"),
        ({"data": {"valid": {"manifest": "test.jsonl"}}}, "give data.valid.packs"),
        ({"condition_dropout": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_run_of_speech_that_contradicts_itself_is_an_error(change: dict[str, Any], message: str) -> None:
    data = {"packs": ["pack"], "weights": {"own": 1.0}}
    whole: dict[str, Any] = {"run": {"out": "out", "steps": 1}, "model": {"base": "own"}, "data": data} | change
    whole["data"] = data | whole["data"]
    with pytest.raises(ValidationError, match=message):
        TTSRun.model_validate(whole)


@pytest.mark.parametrize("name", ["own", "language"])
def test_a_run_that_starts_from_a_model_trains_no_head_that_the_model_lacks(name: str) -> None:
    run = read_run(Path(f"configs/{name}.toml"), LMRun)
    assert run.model.init == "tiny"
    assert (run.loss.spoken, run.loss.frame_phones, run.loss.ctc) == (0, 0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[run]\nout = "x"\nstepz = 3\n',
            "{path} lacks model, data; unknown key 'stepz' in run; did you mean 'steps'?",
        ),
        (
            '[run]\nout = "x"\nsteps = "many"\nrows = 1.5\n[model]\ninit = "tiny"\n[data]\npacks = ["p"]\n',
            "{path}: data lacks weights; run: steps must be a whole number, not 'many'; "
            "run: rows must be a whole number, not 1.5",
        ),
        (
            '[run]\nout = "x"\nsteps = 1\n[model]\ninit = "tiny"\n[data]\npacks = ["p"]\nweights = {own = 1}\n',
            "{path}: model.base is missing: the LM learns with that model's codec; "
            "or set train_codec = true to train a codec with it",
        ),
    ],
)
def test_an_error_in_a_run_names_the_file_once(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_run(path, LMRun)
    assert str(error.value) == message.format(path=path)
