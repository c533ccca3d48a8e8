"""Keep what a model can do: the divergence of what is trained from what the model wrote before.

Shapes: B rows, T frames, D width, V pieces of the vocabulary before it grew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from slipstream.nn.lm import LM
from slipstream.train.lora import GrownEmbedding, GrownHead, LoraLinear, without_adapters
from slipstream.train.model import SpeechModel
from slipstream.train.options import LossOptions
from slipstream.train.vocabulary import Growth


class OldModel:
    """What a run starts from, for `loss.base`.

    Args:
        module: The model or its LM. Its adapters are left aside; without any, it is a copy that stays as it is.
        vocab: V: pieces that it writes; those that are new are unknown to it.
    """

    def __init__(self, module: nn.Module, vocab: int) -> None:
        self.module, self.vocab = module, vocab
        self.lm = cast(LM, module.lm if isinstance(module, SpeechModel) else module)

    def follow(self, like: Tensor) -> None:
        """Move to the device and the type of a trained weight."""
        first = next(self.module.parameters())
        if first.device != like.device:
            self.module.to(like.device)
        if first.dtype != like.dtype:
            for parameter in self.module.parameters():
                parameter.data = parameter.data.to(like.dtype)

    @torch.no_grad()
    def logits(self, hidden: Callable[[LM], Tensor]) -> Tensor:
        """Its scores `[B, T, V]`, from what `hidden` gives for its LM."""
        with without_adapters(self.lm):
            return self.lm.text_logits(hidden(self.lm))[..., : self.vocab]


def old_lm(lm: LM, loss: LossOptions, growth: Growth | None) -> OldModel | None:
    """The LM as it is before the run: beneath its adapters where only those learn, else a copy."""
    if not loss.base:
        return None
    adapters = (LoraLinear, GrownEmbedding, GrownHead)
    beside = {id(p) for module in lm.modules() if isinstance(module, adapters) for p in module.parameters()}
    whole = any(p.requires_grad and id(p) not in beside for p in lm.parameters())
    vocab = growth.old if growth is not None else lm.config.text_vocab
    return OldModel(copy.deepcopy(lm).requires_grad_(False) if whole else lm, vocab)


def old_model(model: SpeechModel, loss: LossOptions, growth: Growth | None) -> OldModel | None:
    """A copy of a codec and LM that learn together, as they are before the run."""
    if not loss.base:
        return None
    vocab = growth.old if growth is not None else model.config.lm.text_vocab
    return OldModel(copy.deepcopy(model).requires_grad_(False), vocab)


def kept_loss(logits_BTV: Tensor, base_BTV: Tensor, kept_BT: Tensor) -> Tensor:
    """Divergence of the trained model's text from the base's where `kept_BT` is set, a frame.

    The trained model can have more pieces: what it gives to them is missing from the others.
    """
    base = base_BTV.float().log_softmax(-1)
    ours = logits_BTV.float().log_softmax(-1)[..., : base.shape[-1]]
    divergence = (base.exp() * (base - ours)).sum(-1)
    return (divergence * kept_BT).sum() / kept_BT.numel()
