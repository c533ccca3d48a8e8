"""LoRA adapters (arXiv:2106.09685) in Kyutai's names, fused into the weights that they adapt."""

from __future__ import annotations

import numpy as np

from slipstream.checkpoints.kyutai import lm_table
from slipstream.checkpoints.tensors import Array, Tensors
from slipstream.errors import CheckpointError
from slipstream.model.config import LMConfig


def fuse(weights: Tensors, adapter: Tensors, config: LMConfig, scaling: float, where: str) -> dict[str, Array]:
    """Canonical LM weights with `scaling * B @ A` added to each that the adapter names, in float32.

    `where` says which file the adapter is, for the message of the `CheckpointError` that is raised when a factor is
    missing, or does not fit a weight of the model.
    """
    table = lm_table(config)
    theirs = table.write(weights)
    names = sorted({name.replace(".lora_B.", ".lora_A.") for name in adapter})
    fused = dict(theirs)
    for name in names:
        target = table.spelled(name.replace(".lora_A.", "."))
        down, up = adapter.get(name), adapter.get(name.replace(".lora_A.", ".lora_B."))
        if target not in theirs or theirs[target].ndim != 2 or ".lora_A." not in name:
            raise CheckpointError(f"{where} is no adapter of this model: it holds {name}")
        if down is None or up is None:
            raise CheckpointError(f"{where} lacks one of the two factors of {target}")
        rows, columns = theirs[target].shape
        rank = up.shape[-1]
        if up.shape != (rows, rank) or down.shape != (rank, columns):
            raise CheckpointError(
                f"{where}: factors {list(up.shape)} and {list(down.shape)} do not make {target} [{rows}, {columns}]"
            )
        fused[target] = theirs[target].astype(np.float32) + scaling * (up.astype(np.float32) @ down.astype(np.float32))
    return table.read(fused, where)
