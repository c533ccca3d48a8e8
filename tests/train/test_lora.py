"""Adapters: no effect at first, the same output merged or separate, new rows that learn, and frozen weights stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train import world

from slipstream.checkpoints.lora import fuse
from slipstream.checkpoints.tensors import read_tensors
from slipstream.nn.build import build_lm
from slipstream.nn.lm import LM
from slipstream.train.lora import (
    ADAPTER_FILE,
    GrownEmbedding,
    GrownHead,
    LoraLinear,
    add_lora,
    merged_weights,
    without_adapters,
    write_adapter,
)
from slipstream.train.options import LoraOptions

OLD_VOCAB = 50
"""Of the 60 pieces of the little world, as if the last ten were new."""


def _lm() -> tuple[LM, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    lm = LM(world.config().lm)
    return lm, torch.randint(0, 61, (2, 9)), torch.randint(0, 64, (2, 4, 9))


def _trained(lm: LM) -> None:
    """Give every part that learns other values."""
    for parameter in lm.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)


def _logits(lm: LM, text: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
    return lm.text_logits(lm(text, audio)[0]).detach()


@pytest.mark.parametrize("old_vocab", [None, OLD_VOCAB])
def test_a_new_adapter_changes_nothing(old_vocab: int | None) -> None:
    lm, text, audio = _lm()
    before = _logits(lm, text, audio)
    add_lora(lm, LoraOptions(rank=4), old_vocab)
    torch.testing.assert_close(_logits(lm, text, audio), before)


@pytest.mark.parametrize("old_vocab", [None, OLD_VOCAB])
@pytest.mark.parametrize("more", [{}, {"pause_heads": True}, {"targets": ["attention"]}, {"embeddings": True}])
def test_merged_and_the_written_adapter_equal_unmerged(
    old_vocab: int | None, more: dict[str, object], tmp_path: Path
) -> None:
    lm, text, audio = _lm()
    base = {name: tensor.numpy().copy() for name, tensor in lm.state_dict().items()}
    options = LoraOptions.model_validate({"rank": 4, "scaling": 0.5} | more)
    add_lora(lm, options, old_vocab)
    _trained(lm)
    beside, pauses = _logits(lm, text, audio), lm.pause_logits(lm(text, audio)[0])
    merged = {name: tensor.float().numpy() for name, tensor in merged_weights(lm).items()}
    assert set(merged) == set(base)
    write_adapter(lm, world.config(), options, tmp_path)
    fused = fuse(base, read_tensors(tmp_path / ADAPTER_FILE), lm.config, 0.5, "adapter")
    for weights in (merged, fused):
        again = build_lm(lm.config, weights)
        torch.testing.assert_close(_logits(again, text, audio), beside, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again.pause_logits(again(text, audio)[0]), pauses, rtol=1e-4, atol=1e-4)


def test_only_the_adapters_learn() -> None:
    lm, text, audio = _lm()
    add_lora(lm, LoraOptions(rank=4))
    learning = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in lm.named_parameters() if ".down." in name or ".up." in name}
    hidden, _ = lm(text, audio)
    lm.text_logits(hidden).sum().backward()
    assert lm.text_linear.up.weight.grad is not None


def test_targets_and_parts_that_learn_in_full() -> None:
    lm, _, _ = _lm()
    add_lora(lm, LoraOptions(rank=4, targets=("attention",), embeddings=True, pause_heads=True))
    adapted = {name for name, module in lm.named_modules() if isinstance(module, LoraLinear)}
    assert adapted
    assert all(".attn." in name for name in adapted)
    whole = {n for n, p in lm.named_parameters() if p.requires_grad and ".down." not in n and ".up." not in n}
    assert whole == {"text_emb.weight", "text_linear.weight", "pause_heads.weight"}


def test_rows_of_new_pieces_learn_with_adapters_and_those_of_old_ones_stay() -> None:
    lm, _, _ = _lm()
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    add_lora(lm, LoraOptions(rank=4, targets=("attention",)), OLD_VOCAB)
    assert isinstance(lm.text_emb, GrownEmbedding)
    assert isinstance(lm.text_linear, GrownHead)
    _trained(lm)
    after = merged_weights(lm)
    for name in ("text_emb.weight", "text_linear.weight"):
        changed = (after[name] != before[name]).any(dim=1).nonzero().flatten().tolist()
        assert changed == list(range(OLD_VOCAB, 60)), name  # the initial token, row 60 of the embeddings, stays too


def test_without_adapters_it_is_the_model_before() -> None:
    lm, text, audio = _lm()
    before = _logits(lm, text, audio)
    add_lora(lm, LoraOptions(rank=4), OLD_VOCAB)
    _trained(lm)
    assert not torch.allclose(_logits(lm, text, audio), before)
    with without_adapters(lm):
        torch.testing.assert_close(_logits(lm, text, audio), before)
    assert not torch.allclose(_logits(lm, text, audio), before)


def test_an_adapter_of_a_grown_vocabulary_fits_the_model_before_it_grew(tmp_path: Path) -> None:
    lm, text, audio = _lm()
    add_lora(lm, LoraOptions(rank=4), OLD_VOCAB)
    small = {name: tensor.numpy() for name, tensor in merged_weights(lm).items()}
    small["text_emb.weight"] = np.delete(small["text_emb.weight"], range(OLD_VOCAB, 60), axis=0)
    small["text_linear.weight"] = small["text_linear.weight"][:OLD_VOCAB]
    _trained(lm)
    write_adapter(lm, world.config(), LoraOptions(rank=4), tmp_path)
    fused = fuse(small, read_tensors(tmp_path / ADAPTER_FILE), lm.config, 2.0, "adapter")
    again = build_lm(lm.config, fused)
    torch.testing.assert_close(_logits(again, text, audio), _logits(lm, text, audio), rtol=1e-4, atol=1e-4)
