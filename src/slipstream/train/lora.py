"""Low-rank adapters on an LM's linear layers (arXiv:2106.09685), and rows for new pieces, next to frozen weights.

Shapes: B rows, T positions, D width, N new pieces, which come after the others of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.checkpoints.checkpoint import Checkpoint, write_folder
from slipstream.checkpoints.kyutai import dump_kyutai
from slipstream.checkpoints.lora import to_kyutai
from slipstream.errors import ConfigError
from slipstream.model.config import LMConfig, STTConfig
from slipstream.nn.build import build_lm
from slipstream.nn.lm import LM, PauseHeads
from slipstream.train.options import LMRun, LoraOptions
from slipstream.train.parallel import dtype_of
from slipstream.train.vocabulary import Growth

ADAPTER_FILE = "adapter.safetensors"
ADAPTER_CONFIG = "adapter.json"
TARGETS = {"attention": (".attn.", ".cross."), "feed_forward": (".ffn.",), "text_head": ("text_linear",)}
"""The parts of a linear layer's name by which `lora.targets` calls it."""


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
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.base(x))
        return y + self.scaling * self.up(self.down(x)) if self.enabled else y

    @property
    def merged(self) -> Tensor:
        """The base's weight with the adapter added, in float32."""
        base, down, up = (layer.weight.detach().float() for layer in (self.base, self.down, self.up))
        return base + self.scaling * (up @ down)


class GrownEmbedding(nn.Module):
    """An embedding whose rows of the N pieces from `first` on learn, while the others stay."""

    def __init__(self, base: nn.Embedding, first: int, count: int) -> None:
        super().__init__()
        self.base, self.first = base.requires_grad_(False), first
        self.rows = nn.Parameter(base.weight[first : first + count].detach().clone())
        self.enabled = True

    def forward(self, tokens: Tensor) -> Tensor:
        x = cast(Tensor, self.base(tokens))
        if not self.enabled:
            return x
        place = tokens - self.first
        new = (place >= 0) & (place < len(self.rows))
        learnt = nn.functional.embedding(place.clamp(0, len(self.rows) - 1), self.rows)
        return torch.where(new[..., None], learnt, x)

    @property
    def merged(self) -> Tensor:
        """All rows, in float32."""
        return _with_rows(self.base.weight, self.first, self.rows)


class GrownHead(nn.Module):
    """A text head, with or without an adapter, whose rows of the N pieces from `first` on learn."""

    def __init__(self, base: nn.Linear | LoraLinear, first: int) -> None:
        super().__init__()
        self.base, self.first = base, first
        weight = base.base.weight if isinstance(base, LoraLinear) else base.weight
        self.rows = nn.Parameter(weight[first:].detach().clone())
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.base(x))
        if not self.enabled:
            return y
        return torch.cat([y[..., : self.first], nn.functional.linear(x, self.rows)], dim=-1)

    @property
    def merged(self) -> Tensor:
        """All rows, in float32."""
        weight = self.base.merged if isinstance(self.base, LoraLinear) else self.base.weight.detach()
        return _with_rows(weight, self.first, self.rows)


_Adapter = LoraLinear | GrownEmbedding | GrownHead


def based_lm(base: Checkpoint, config: LMConfig, options: LMRun, growth: Growth | None = None) -> LM:
    """The base's LM, as much of it learning as the run asks for; what stays as it is, is kept in the run's type.

    Args:
        base: The checkpoint.
        config: The LM that is trained: with its own number of pause heads, and a vocabulary that has grown.
        options: The run.
        growth: How the vocabulary grows; the new rows learn.

    Raises:
        ConfigError: The run trains pause heads, and the LM has none; or it trains them alone with a new vocabulary.
    """
    frozen = options.lora is not None or options.pause_heads_only
    weights = dict(base.lm) if growth is None else growth.grown(base.lm)
    if config.pause_heads != base.config.lm.pause_heads:
        heads = PauseHeads(config.pause_heads, config.pause_classes, config.transformer.dim)
        weights["pause_heads.weight"] = heads.weight.detach().numpy()
    for condition in config.conditioners:
        if condition not in base.config.lm.conditioners:
            if frozen:
                raise ConfigError(f"an adapter or pause heads alone cannot learn the new condition {condition.name}")
            prefix, dim = f"conditioners.{condition.name}.", config.transformer.dim
            weights[prefix + "output_proj.weight"] = np.zeros((dim, condition.dim), np.float32)
            weights[prefix + "learnt_padding"] = np.zeros(dim, np.float32)
    lm = build_lm(config, weights, dtype=dtype_of(options.run) if frozen else torch.float32)
    lm.requires_grad_(not frozen)
    if options.pause_heads_only and growth is not None:
        raise ConfigError("pause_heads_only leaves the words as they are: leave data.tokenizer out")
    if options.pause_heads_only or (options.lora is not None and options.lora.pause_heads):
        if lm.pause_heads is None:
            raise ConfigError(f"{options.model.base} has no pause heads: give their number, model.pause_heads")
        lm.pause_heads.requires_grad_(options.pause_heads_only)
    if options.lora is not None:
        add_lora(lm, options.lora, None if growth is None else growth.old)
    return lm.train()


def add_lora(lm: LM, options: LoraOptions, old_vocab: int | None = None) -> None:
    """Freeze an LM and put adapters on its linear layers, in place; with `options`, other parts of it learn too.

    Args:
        lm: The LM.
        options: Rank, scaling, targets and the other parts.
        old_vocab: Number of pieces before the vocabulary grew: the rows of those after it learn in full.
    """
    lm.requires_grad_(False)
    if options.pause_heads and lm.pause_heads is not None:
        lm.pause_heads.requires_grad_(True)
    for parent, name, layer in list(_linears(lm, options)):
        setattr(parent, name, LoraLinear(layer, options.rank, options.scaling))
    if options.embeddings:
        lm.text_emb.requires_grad_(True)
        lm.text_linear.requires_grad_(True)
    elif old_vocab is not None:
        first, count = old_vocab, lm.config.text_vocab - old_vocab
        lm.text_emb = GrownEmbedding(lm.text_emb, first, count)  # type: ignore[assignment]  # it replaces it
        lm.text_linear = GrownHead(lm.text_linear, first)  # type: ignore[assignment]


@contextmanager
def without_adapters(lm: LM) -> Iterator[None]:
    """The LM as it was before `add_lora`, for the time of the context."""
    adapters = [module for module in lm.modules() if isinstance(module, _Adapter)]
    for module in adapters:
        module.enabled = False
    try:
        yield
    finally:
        for module in adapters:
            module.enabled = True


def merged_weights(lm: LM) -> dict[str, Tensor]:
    """The LM's weights under canonical names, every adapter added to the weight beneath it; `lm` stays as it is."""
    wrapped = {name: module for name, module in lm.named_modules() if isinstance(module, _Adapter)}
    outer = {name: module for name, module in wrapped.items() if name.rpartition(".")[0] not in wrapped}
    weights = {f"{name}.weight": module.merged for name, module in outer.items()}
    weights |= {
        f"{name}.bias": module.base.bias.detach()
        for name, module in outer.items()
        if isinstance(module, LoraLinear) and module.base.bias is not None
    }
    inner = tuple(f"{name}." for name in outer)
    return weights | {name: tensor for name, tensor in lm.state_dict().items() if not name.startswith(inner)}


def adapter_of(lm: LM, options: LoraOptions) -> dict[str, Tensor]:
    """What was trained, under canonical names: `NAME.down` and `NAME.up` of each adapter, and whole tensors."""
    tensors: dict[str, Tensor] = {}
    for name, module in lm.named_modules():
        place = name.removesuffix(".base")
        if isinstance(module, LoraLinear):
            tensors |= {f"{place}.down": module.down.weight, f"{place}.up": module.up.weight}
        elif isinstance(module, GrownEmbedding):
            tensors["text_emb.weight"] = module.merged
        elif isinstance(module, GrownHead):
            tensors["text_linear.weight"] = _beneath(module)
    whole = ["text_emb.weight", "text_linear.weight"] if options.embeddings else []
    whole += ["pause_heads.weight"] if options.pause_heads else []
    state = lm.state_dict()
    return {name: tensor.detach() for name, tensor in (tensors | {name: state[name] for name in whole}).items()}


def write_adapter(lm: LM, config: STTConfig, options: LoraOptions, folder: Path) -> None:
    """Write the adapter next to a model, under Kyutai's names, and the `config.json` that goes with it.

    `adapter.safetensors` has the factors, and the whole tensors that were trained; `adapter.json` is the configuration
    of the base model with the adapter's rank and scaling. See `checkpoints.lora.to_kyutai`.
    """
    trained = {name: tensor.float().cpu().numpy() for name, tensor in adapter_of(lm, options).items()}
    adapter = to_kyutai(trained, config.lm, options.rank)
    raw = dump_kyutai(config) | {
        "lora": True,
        "lora_name": ADAPTER_FILE,
        "lora_rank": options.rank,
        "lora_scaling": options.scaling,
    }
    write_folder(folder, {ADAPTER_CONFIG: raw}, {ADAPTER_FILE: adapter})


def _linears(lm: LM, options: LoraOptions) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers that get an adapter, with the modules that hold them and their names there."""
    targets = (target for target in options.targets if not (target == "text_head" and options.embeddings))
    parts = [part for target in targets for part in TARGETS[target]]
    modules = dict(lm.named_modules())
    for path, module in modules.items():
        if isinstance(module, nn.Linear) and any(part in path for part in parts):
            parent, _, name = path.rpartition(".")
            yield modules[parent], name, module


def _beneath(head: GrownHead) -> Tensor:
    """The text head's rows in float32, without what its adapter adds to them."""
    if not isinstance(head.base, LoraLinear):
        return head.merged
    return head.merged - (head.base.merged - head.base.base.weight.detach().float())


def _with_rows(weight: Tensor, first: int, rows: Tensor) -> Tensor:
    merged = weight.detach().float().clone()
    merged[first : first + len(rows)] = rows.detach().float()
    return merged
