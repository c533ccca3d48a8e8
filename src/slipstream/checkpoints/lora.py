"""LoRA adapters (arXiv:2106.09685) in Kyutai's names, fused into the weights that they adapt."""

from __future__ import annotations

import numpy as np

from slipstream.checkpoints.kyutai import lm_table
from slipstream.checkpoints.tensors import Array, Tensors
from slipstream.errors import CheckpointError
from slipstream.model.config import LMConfig


def fuse(weights: Tensors, adapter: Tensors, config: LMConfig, scaling: float, where: str) -> dict[str, Array]:
    """Add `scaling * B @ A` to each weight that the adapter names.

    Args:
        weights: The LM's weights under canonical names.
        adapter: The factors under Kyutai's names.
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
    names = sorted({name.replace(".lora_B.", ".lora_A.") for name in adapter})
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
