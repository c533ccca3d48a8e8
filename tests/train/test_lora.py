"""Adapters: no effect at first, the same output merged or separate, and frozen weights stay."""

from __future__ import annotations

import torch
from tests.train import world

from slipstream.backends.torch.lm import LM
from slipstream.train.lora import LoraLinear, add_lora, merge_lora


def _lm() -> tuple[LM, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    lm = LM(world.config().lm)
    return lm, torch.randint(0, 60, (2, 9)), torch.randint(0, 64, (2, 4, 9))


@torch.no_grad()
def test_a_new_adapter_changes_nothing() -> None:
    lm, text, audio = _lm()
    before, _ = lm(text, audio)
    add_lora(lm, 4, 2.0)
    after, _ = lm(text, audio)
    assert torch.equal(before, after)


def test_merged_equals_unmerged() -> None:
    lm, text, audio = _lm()
    names = set(lm.state_dict())
    add_lora(lm, 4, 2.0)
    for module in lm.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.up.weight, std=0.1)
    hidden, _ = lm(text, audio)
    beside = lm.text_logits(hidden)
    merge_lora(lm)
    hidden, _ = lm(text, audio)
    torch.testing.assert_close(lm.text_logits(hidden), beside, rtol=1e-4, atol=1e-4)
    assert set(lm.state_dict()) == names


def test_only_the_adapters_learn() -> None:
    lm, text, audio = _lm()
    add_lora(lm, 4, 2.0)
    learning = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in lm.named_parameters() if ".down." in name or ".up." in name}
    hidden, _ = lm(text, audio)
    lm.text_logits(hidden).sum().backward()
    assert lm.text_linear.up.weight.grad is not None
