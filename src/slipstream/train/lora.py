"""Low-rank adapters on an LM's linear layers (arXiv:2106.09685): trained next to frozen weights, merged for use."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from slipstream.backends.torch.lm import LM


class LoraLinear(nn.Module):
    """`base(x) + scaling * up(down(x))`; `up` starts at zero, so that an untrained adapter changes nothing."""

    def __init__(self, base: nn.Linear, rank: int, scaling: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Linear(base.in_features, rank, bias=False, **like)
        self.up = nn.Linear(rank, base.out_features, bias=False, **like)
        nn.init.zeros_(self.up.weight)
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.base(x) + self.scaling * self.up(self.down(x)))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer with the adapter added to its weight, in float32 before it is rounded back."""
        update = self.scaling * (self.up.weight.float() @ self.down.weight.float())
        self.base.weight.copy_(self.base.weight.float() + update)
        return self.base


def add_lora(lm: LM, rank: int, scaling: float) -> None:
    """Freeze `lm` and put an adapter on every linear layer of its Transformer and on its text head, in place."""
    lm.requires_grad_(False)
    for parent, name, layer in _linears(lm):
        setattr(parent, name, LoraLinear(layer, rank, scaling))


def merge_lora(lm: LM) -> None:
    """Add every adapter to the weight beneath it and take it away, in place."""
    for module in list(lm.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                setattr(module, name, child.merged())


def _linears(lm: LM) -> list[tuple[nn.Module, str, nn.Linear]]:
    found = [
        (module, name, child)
        for module in lm.transformer.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ]
    return [*found, (lm, "text_linear", lm.text_linear)]
