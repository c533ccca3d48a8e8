"""The recipe from texts to a model that a backend loads, as its commands run it, with a model too small to learn."""

from __future__ import annotations

import ctypes.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models import load_checkpoint
from typer.testing import CliRunner

from slipstream.cli import data as data_cli
from slipstream.cli import train as train_cli
from slipstream.cli.evaluate import evaluate
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.text import Tokenizer
from slipstream.train.options import CodecRun, LMRun, read_run
from slipstream.train.speech import load_aligner, read_speech_weights

needs_espeak = pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="espeak-ng is not installed")
TEXTS = ["The red house stands on a hill.", "We walked home in the rain.", "Nobody knew the answer."]

CODEC = """
[run]
out = "{root}/codec"
steps = 3
rows = 2
log_every = 1
[model.codec]
num_filters = 8
ratios = [2, 2]
codebook_dim = 8
codebook_size = 16
num_codebooks = 3
[model.codec.mel]
n_mels = 24
[model.codec.transformer]
dim = 32
num_heads = 2
num_layers = 1
ffn_dim = 32
context = 20
max_period = 10000.0
norm = "layer_norm"
gated = false
layer_scale = true
[model.lm]
text_vocab = 28
audio_vocab = 16
num_codebooks = 3
pause_heads = 4
[model.lm.transformer]
dim = 32
num_heads = 2
num_layers = 1
ffn_dim = 64
context = 20
max_period = 10000.0
norm = "rms_norm"
gated = true
[data]
packs = ["{root}/mel"]
tokenizer = "{root}/spm.model"
seconds = 6.0
weights = {{ espeak-ng-en = 1.0 }}
"""
TEXT = """
[run]
out = "{root}/{name}"
steps = 2
rows = 2
[model]
base = "{root}/joint/model"
[data]
packs = ["{root}/tokens"]
tokenizer = "{root}/spm.model"
seconds = 6.0
weights = {{ espeak-ng-en = 1.0 }}
"""


def _call(app: object, *arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.output


@needs_espeak
def test_from_texts_to_a_model_that_transcribes(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS * 4), encoding="utf-8")
    _call(train_cli.app, "tokenizer", texts, "--out", tmp_path / "spm.model", "--size", 28)
    _call(data_cli.app, "synthesise", texts, "--out", tmp_path / "audio", "--limit", 3)
    manifest = tmp_path / "audio" / "manifest.jsonl"
    assert "3 good recordings" in _call(data_cli.app, "validate", manifest, "--tokenizer", tmp_path / "spm.model")
    toml = tmp_path / "codec.toml"
    toml.write_text(CODEC.format(root=tmp_path), encoding="utf-8")
    _call(data_cli.app, "pack", manifest, "--out", tmp_path / "mel", "--config", toml)
    assert "parameters" in _call(train_cli.app, "codec", toml)

    aligned = tmp_path / "aligned.jsonl"
    _call(
        data_cli.app,
        "align",
        manifest,
        "-o",
        aligned,
        "--aligner",
        tmp_path / "codec" / "codec",
        "--least",
        -99,
    )
    assert len(aligned.read_text(encoding="utf-8").splitlines()) == 3

    joint = tmp_path / "joint.toml"
    changes = CODEC.replace("[model.codec]", f'[model]\ninit = "{tmp_path}/codec/last.pt"\n[model.codec]', 1)
    changes = f"train_codec = true\n{changes}\n[quantiser]\nstart = 2\n"
    joint.write_text(changes.replace('/codec"\nsteps', '/joint"\nsteps').format(root=tmp_path), encoding="utf-8")
    _call(train_cli.app, "lm", joint)

    model = tmp_path / "joint" / "model"
    _call(data_cli.app, "pack", manifest, "--out", tmp_path / "tokens", "--model", model)
    for name, more in (("text", ""), ("lora", "[lora]\nrank = 2\n")):
        run = tmp_path / f"{name}.toml"
        run.write_text(TEXT.format(root=tmp_path, name=name) + more, encoding="utf-8")
        _call(train_cli.app, "lm", run)
    _check_pause_heads_alone(tmp_path)
    _check_going_on(tmp_path)

    import typer

    app = typer.Typer()
    app.command()(evaluate)
    page, numbers = tmp_path / "report.html", tmp_path / "report.json"
    output = _call(
        app, manifest, "--model", tmp_path / "lora" / "model", "--backend", "torch", "--html", page, "--json", numbers
    )
    assert "end of turn above 0.60" in output
    assert json.loads(numbers.read_text(encoding="utf-8"))["overall"]["words"]["recordings"] == 3
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def _check_pause_heads_alone(root: Path) -> None:
    run = root / "pauses.toml"
    run.write_text("pause_heads_only = true\n" + TEXT.format(root=root, name="pauses"), encoding="utf-8")
    _call(train_cli.app, "lm", run)
    before, after = load_checkpoint(root / "joint" / "model").lm, load_checkpoint(root / "pauses" / "model").lm
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == ["pause_heads.weight"]
    assert len(load_aligner(str(root / "pauses" / "model")).phones) == len(
        load_aligner(str(root / "codec" / "codec")).phones
    )
    run.write_text(
        run.read_text(encoding="utf-8").replace("base =", "pause_heads = 2\nbase =").replace("/pauses", "/two")
    )
    _call(train_cli.app, "lm", run)
    two = load_checkpoint(root / "two" / "model")
    assert two.config.lm.pause_heads == 2
    assert two.lm["pause_heads.weight"].shape[0] == 2


def _check_going_on(root: Path) -> None:
    """A run that names a model starts from its weights, the heads and ties among them; one without heads is refused."""
    start = read_speech_weights(str(root / "joint" / "model"))
    kept = torch.load(root / "joint" / "last.pt", weights_only=True)["weights"]
    torch.testing.assert_close({name: start[name] for name in kept}, kept, rtol=1e-2, atol=1e-2)  # it is in bfloat16
    cut = CODEC[: CODEC.index("[model.codec]")] + CODEC[CODEC.index("[data]") :]
    run = root / "on.toml"
    text = cut.replace("[data]", '[model]\ninit = "{root}/joint/model"\n[data]').replace("/codec", "/on")
    run.write_text(f"train_codec = true\n{text}\n[quantiser]\nstart = 0\n".format(root=root), encoding="utf-8")
    _call(train_cli.app, "lm", run)
    with pytest.raises(CheckpointError, match="Phone heads are in the built-in model"):
        load_aligner(str(root / "text" / "model"))


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(CODEC.format(root=tmp_path).replace("rows = 2", "rows = 2\nlearnig_rate = 1.0"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown key 'learnig_rate' in run; did you mean 'learning_rate'\?"):
        read_run(path, CodecRun)


def test_a_run_has_one_length(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        TEXT.format(root=tmp_path, name="x").replace("steps = 2", "steps = 2\nminutes = 1"), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="run: give the run's length by exactly one of steps and minutes"):
        read_run(path, LMRun)


@pytest.mark.parametrize(
    "path", sorted([*Path("configs").glob("*.toml"), *Path("recipes").rglob("*.toml")]), ids=lambda path: path.stem
)
def test_the_runs_in_the_repository_can_be_read(path: Path) -> None:
    of_codec = path.stem == "decoder" or any(kind in path.stem for kind in ("codec", "phones", "distil"))
    read_run(path, CodecRun if of_codec else LMRun)


def test_an_extended_vocabulary_keeps_its_old_ids(tmp_path: Path) -> None:
    from slipstream.data.tokenizer import extend_tokenizer, train_tokenizer

    rng = np.random.default_rng(0)
    train_tokenizer((" ".join(rng.choice(TEXTS)) for _ in range(40)), tmp_path / "old.model", 50, hard_limit=False)
    french = ["où êtes-vous allés hier soir", "la forêt était déjà très sombre"] * 30
    old = Tokenizer(tmp_path / "old.model")
    extend_tokenizer(tmp_path / "old.model", french, tmp_path / "new.model", old.vocab_size + 10)
    new = Tokenizer(tmp_path / "new.model")
    assert new.vocab_size == old.vocab_size + 10
    assert [new.segments(i) for i in range(old.vocab_size)] == [old.segments(i) for i in range(old.vocab_size)]
    assert old.decode(old.encode("forêt")) != "forêt"
    assert new.decode(new.encode("forêt")) == "forêt"


def test_masters_keep_steps_that_bfloat16_would_lose() -> None:
    from slipstream.train.optim import MasterWeights

    layer = torch.nn.Linear(2, 2)
    weights = MasterWeights(layer, torch.bfloat16)
    before = layer.weight.clone()
    for _ in range(64):
        with torch.no_grad():
            weights.masters["weight"].mul_(1 + 1 / 1024)
        weights.publish()
    assert layer.weight.dtype == torch.bfloat16
    assert torch.allclose(layer.weight.float(), before.float() * (1 + 1 / 1024) ** 64, rtol=1e-2)
