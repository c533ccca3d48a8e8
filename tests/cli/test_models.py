"""`slipstream models`: what is built in, cached, and known by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
from tests.cli.conftest import Outcome

from slipstream.checkpoints.kyutai import dump_kyutai
from slipstream.checkpoints.presets import PRESETS
from slipstream.cli.models import known_models, offered_languages, production_hint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, repository: str, config: dict[str, object]) -> None:
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    (snapshot / "config.json").write_text(json.dumps(config))


def test_published_models_are_on_the_hub_until_they_are_cached(cache: Path) -> None:
    assert {model.name: model.place for model in known_models()}["kyutai/stt-1b-en_fr-candle"] == "on the hub"
    assert "about 2.4 GB to download" in production_hint()

    put(cache, "kyutai/stt-1b-en_fr-candle", dump_kyutai(PRESETS["kyutai/stt-1b-en_fr-candle"]))

    assert {model.name: model.place for model in known_models()}["kyutai/stt-1b-en_fr-candle"] == "cached"
    assert "in your cache" in production_hint()


def test_other_cached_models_of_the_kind_are_listed(cache: Path) -> None:
    put(cache, "me/fine-tuned", dump_kyutai(PRESETS["kyutai/stt-2.6b-en"]))
    put(cache, "you/classifier", {"model_type": "bert"})
    names = [model.name for model in known_models()]
    assert "me/fine-tuned" in names
    assert "you/classifier" not in names


def test_table(cache: Path, cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("models").out.splitlines()
    (row,) = [line for line in lines if line.startswith("kyutai/stt-2.6b-en")]
    assert " ".join(row.split()) == "kyutai/stt-2.6b-en en 2.5 s none 2713 M 5.6 GB download"
    assert lines[-1].endswith(": kyutai/tts-1.6b-en_fr, kyutai/tts-0.75b-en-public")


def test_the_languages_of_several_models_are_those_of_all() -> None:
    assert offered_languages(["./folder"]) == ("en",)
    assert offered_languages(["kyutai/stt-2.6b-en", "tiny"]) == ("en", "fr")
