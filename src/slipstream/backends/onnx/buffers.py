"""Arrays that the streams of the codec and of the LM have in common.

Shapes: B slots, T positions in a step, L layers, H heads, d head width, C columns. Keys and values of all layers are in
one array `[L, 2, B, H, C, d]`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray, IntArray
from slipstream.backends.onnx.graph import Array
from slipstream.backends.onnx.transformer import padded_head_dim
from slipstream.model.config import TransformerConfig
from slipstream.model.numerics import rotations


class Rotary:
    """The inputs of the rotary angles: a table with a row for each position of each slot, and the rows of each slot."""

    def __init__(self, config: TransformerConfig, slots: int, steps: int) -> None:
        self.config = config
        self.row_BT = np.arange(slots * steps).reshape(slots, steps)
        self.pairs = padded_head_dim(config) // 2  # those of the padding are zeros
        cos, sin = self._rotations(self.row_BT)
        self.angles = {"cos": cos, "sin": sin}

    def turn(self, position_BT: IntArray) -> None:
        rows = position_BT.size
        self.angles["cos"][:rows], self.angles["sin"][:rows] = self._rotations(position_BT)

    def _rotations(self, position_BT: IntArray) -> tuple[FloatArray, FloatArray]:
        return rotations(position_BT.reshape(-1), self.config.head_dim, self.config.max_period, self.pairs)


def key_values(config: TransformerConfig, slots: int, columns: int, dtype: npt.DTypeLike) -> Array:
    shape = (config.num_layers, 2, slots, config.num_heads, columns, padded_head_dim(config))
    return np.zeros(shape, dtype)


def layer_arrays(key_values: Array, suffix: str = "", prefix: str = "") -> dict[str, Array]:
    """The names in the graph of each layer's keys and values."""
    return {
        f"{prefix}{name}.{layer}{suffix}": part
        for layer, pair in enumerate(key_values)
        for name, part in zip(("k", "v"), pair, strict=True)
    }
