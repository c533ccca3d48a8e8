"""A grown vocabulary: what a new piece replaces, its rows, and runs that start from a model with fewer pieces."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models import load_checkpoint
from tests.train import world

from slipstream.checkpoints.checkpoint import read_checkpoint
from slipstream.checkpoints.sources import resolve
from slipstream.data.options import DataOptions
from slipstream.data.tokenizer import extend_tokenizer, train_tokenizer
from slipstream.errors import ConfigError
from slipstream.model.text import Tokenizer
from slipstream.nn.lm import LM
from slipstream.train.keep import kept_loss, old_lm
from slipstream.train.launch import run_lm
from slipstream.train.lora import ADAPTER_CONFIG, add_lora
from slipstream.train.options import LMRun, LoraOptions, LossOptions, ModelOptions, RunOptions
from slipstream.train.vocabulary import Growth

GERMAN = ["eins zwei dr\u00f6i vier f\u00fcnf", "sechs sieben acht neun zehn", "f\u00fcnf und eins ist sechs"] * 30
ADDED = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, a pack of its codec's tokens, and a vocabulary that extends the base's."""
    folder = world.base_folder(tmp_path_factory.mktemp("grown"))
    tokenizer = folder / "tokenizer.model"
    extend_tokenizer(tokenizer, GERMAN, folder / "new.model", Tokenizer(tokenizer).vocab_size + ADDED)
    return folder


def _options(folder: Path, out: Path, steps: int = 2, **changes: object) -> LMRun:
    given = {"lora": LoraOptions(rank=4)} | changes
    return LMRun(
        run=RunOptions(out=out, steps=steps, rows=2),
        model=ModelOptions(base=str(folder / "base")),
        data=DataOptions(packs=(folder / "pack",), weights={"chords": 1.0}, tokenizer=folder / "new.model", seconds=4),
        **given,  # type: ignore[arg-type]
    )


def test_a_new_row_is_the_mean_of_the_rows_that_it_replaces(folder: Path) -> None:
    growth = Growth(folder / "tokenizer.model", folder / "new.model")
    V = growth.old
    assert growth.new == V + ADDED
    lm = LM(world.config().lm.model_copy(update={"text_vocab": V}))
    before = {name: tensor.numpy() for name, tensor in lm.state_dict().items()}
    after = growth.grown(before)
    assert after["text_emb.weight"].shape == (V + ADDED + 1, 64)
    assert np.array_equal(after["text_emb.weight"][-1], before["text_emb.weight"][-1])  # the initial token
    for name in ("text_emb.weight", "text_linear.weight"):
        assert np.array_equal(after[name][:V], before[name][:V])
        for row, ids in enumerate(growth.replaced, V):
            np.testing.assert_allclose(after[name][row], before[name][list(ids)].mean(axis=0), rtol=1e-5)
    assert {name for name in before if after[name] is not before[name]} == {"text_emb.weight", "text_linear.weight"}


def test_a_letter_that_is_new_replaces_the_one_without_its_marks(folder: Path) -> None:
    old, new = Tokenizer(folder / "tokenizer.model"), Tokenizer(folder / "new.model")
    growth = Growth(folder / "tokenizer.model", folder / "new.model")
    texts = {new.decode([id]): old.decode(ids) for id, ids in enumerate(growth.replaced, old.vocab_size)}
    assert texts["\u00fc"] == "u"
    assert growth.old == old.vocab_size


def test_another_vocabulary_is_refused_with_the_way_to_extend(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(GERMAN, tmp_path / "other.model", 100, hard_limit=False)
    options = _options(folder, tmp_path / "run")
    data = options.data.model_copy(update={"tokenizer": tmp_path / "other.model"})
    with pytest.raises(ConfigError, match=r"does not begin with the \d+ pieces of .*train tokenizer --extend"):
        run_lm(options.model_copy(update={"data": data}), lambda line: None)


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4)])
def test_a_run_grows_the_model_and_saves_the_tokenizer_with_it(
    folder: Path, tmp_path: Path, lora: LoraOptions | None
) -> None:
    model = run_lm(_options(folder, tmp_path / "run", lora=lora), lambda line: None)
    grown = load_checkpoint(model)
    vocab = Tokenizer(folder / "tokenizer.model").vocab_size + ADDED
    assert grown.config.lm.text_vocab == Tokenizer(grown.tokenizer).vocab_size == vocab
    assert grown.tokenizer.parent == model
    if lora is None:
        return
    beside = read_checkpoint(resolve(folder / "base", config=model / ADAPTER_CONFIG))
    assert Tokenizer(beside.tokenizer).vocab_size == vocab
    for name, array in grown.lm.items():
        np.testing.assert_allclose(
            beside.lm[name].astype(np.float32), array.astype(np.float32), rtol=1e-2, atol=1e-2, err_msg=name
        )


def test_a_run_with_new_pieces_resumes(folder: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(run_lm(_options(folder, tmp_path / "whole", 3), lambda line: None))
    options = _options(folder, tmp_path / "parts", 3)

    _stop_after_a_step(options)
    parts = load_checkpoint(run_lm(options, lambda line: None))
    for name, array in whole.lm.items():
        assert np.array_equal(array, parts.lm[name]), name


def _stop_after_a_step(options: LMRun) -> None:
    """Interrupt a run as it reports its first step, as Ctrl-C does."""

    def report(line: str) -> None:
        if "step 1 " in line:
            signal.raise_signal(signal.SIGINT)

    run = options.run.model_copy(update={"log_every": 1})
    with pytest.raises(KeyboardInterrupt):
        run_lm(options.model_copy(update={"run": run}), report)


def test_the_divergence_from_the_base_is_zero_at_first_and_counts_where_it_is_kept() -> None:
    logits, base = torch.randn(1, 3, 8), torch.randn(1, 3, 6)
    kept = torch.tensor([[True, False, True]])
    same = torch.cat([base, torch.full((1, 3, 2), -1e9)], dim=-1)
    assert kept_loss(same, base, kept).item() == pytest.approx(0, abs=1e-6)
    p = base.softmax(-1)
    expected = (p * (p.log() - logits.log_softmax(-1)[..., :6])).sum(-1)[kept].sum() / 3
    torch.testing.assert_close(kept_loss(logits, base, kept), expected)


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4)])
def test_the_old_model_is_that_before_the_run(lora: LoraOptions | None) -> None:
    torch.manual_seed(0)
    lm = LM(world.config().lm)
    text, audio = torch.randint(0, 60, (1, 9)), torch.randint(0, 64, (1, 4, 9))
    before = lm.text_logits(lm(text, audio)[0]).detach()
    if lora is not None:
        add_lora(lm, lora)
    old = old_lm(lm, LossOptions(base=1.0), None)
    assert old is not None
    assert (old.lm is lm) == (lora is not None)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    torch.testing.assert_close(old.logits(lambda lm: lm(text, audio)[0]), before)
    assert old_lm(lm, LossOptions(), None) is None
