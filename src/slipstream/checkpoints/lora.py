"""LoRA adapters (arXiv:2106.09685) in Kyutai's names: fused into the weights that they adapt, and written."""

from __future__ import annotations

import re

import numpy as np

from slipstream.checkpoints.kyutai import lm_table
from slipstream.checkpoints.tensors import Array, Tensors
from slipstream.errors import CheckpointError
from slipstream.model.config import LMConfig


def fuse(weights: Tensors, adapter: Tensors, config: LMConfig, scaling: float, where: str) -> dict[str, Array]:
    """Add `scaling * B @ A` to each weight that the adapter names; whole tensors in it replace those of the model.

    Args:
        weights: The LM's weights under canonical names. The vocabulary can be smaller than in `config` if the adapter
            has the text embeddings and the text head.
        adapter: The factors, and whole tensors, under Kyutai's names.
        config: The LM.
        scaling: The factor on what the adapter adds.
        where: What to call the adapter in messages.

    Returns:
        All weights under canonical names; the changed ones are float32.

    Raises:
        CheckpointError: A factor is missing, or does not fit a weight of the model.
    """
    table = lm_table(config)
    theirs = table.write(weights)
    whole = {table.spelled(name): array for name, array in adapter.items() if ".lora_" not in name}
    if unknown := sorted(whole.keys() - theirs.keys()):
        raise CheckpointError(f"{where} is not an adapter of this model: it contains {unknown[0]}")
    theirs |= whole
    names = sorted({name.replace(".lora_B.", ".lora_A.") for name in adapter if ".lora_" in name})
    fused = dict(theirs)
    for name in names:
        target = table.spelled(name.replace(".lora_A.", "."))
        down, up = adapter.get(name), adapter.get(name.replace(".lora_A.", ".lora_B."))
        if target not in theirs or theirs[target].ndim != 2 or ".lora_A." not in name:
            raise CheckpointError(f"{where} is not an adapter of this model: it contains {name}")
        if down is None or up is None:
            raise CheckpointError(f"{where} lacks one of the two factors of {target}")
        rows, columns = theirs[target].shape
        rank = up.shape[-1]
        if up.shape != (rows, rank) or down.shape != (rank, columns):
            raise CheckpointError(
                f"{where}: factors {list(up.shape)} and {list(down.shape)} do not fit {target} [{rows}, {columns}]"
            )
        fused[target] = theirs[target].astype(np.float32) + scaling * (up.astype(np.float32) @ down.astype(np.float32))
    return table.read(fused, where)


def to_kyutai(trained: Tensors, config: LMConfig, rank: int) -> dict[str, Array]:
    """Write what an adapter holds under Kyutai's names; `fuse` is the inverse.

    The `moshi` package puts an adapter on every linear layer of the LM and needs factors for each: those that were not
    trained are zero.

    Args:
        trained: `NAME.down` and `NAME.up` for each adapted `NAME.weight`, and whole tensors, under canonical names.
        config: The LM.
        rank: Of the factors.

    Returns:
        float32.
    """
    table = lm_table(config)
    adapter: dict[str, Array] = {}
    for rule in table.rules:
        name = next(iter(rule.ours))
        if name in trained:
            adapter |= zip(rule.theirs, rule.form.write([trained[name]]), strict=True)
        if not name.endswith(_LINEAR):
            continue
        stem = name.removesuffix(".weight")
        for theirs, (rows, columns) in rule.theirs.items():
            layer = re.sub(r"self_attn\.(in|out)_proj[._]weight$", r"self_attn.\1_projs.0.weight", theirs)
            layer = layer.removesuffix(".weight")
            down, up = trained.get(f"{stem}.down"), trained.get(f"{stem}.up")
            adapter[f"{layer}.lora_A.weight"] = down if down is not None else np.zeros((rank, columns), np.float32)
            adapter[f"{layer}.lora_B.weight"] = up if up is not None else np.zeros((rows, rank), np.float32)
    return adapter


_LINEAR = (
    *(".attn.in_proj.weight", ".attn.out_proj.weight", ".ffn.linear_in.weight", ".ffn.linear_out.weight"),
    *(f".{part}.{name}_proj.weight" for part in ("attn", "cross") for name in "qkv"),
    *("text_linear.weight", "pause_heads.weight", ".output_proj.weight", ".cross.out_proj.weight"),
)
"""Endings of the canonical names of the LM's linear layers."""
