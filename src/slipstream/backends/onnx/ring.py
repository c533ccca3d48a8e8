"""Attention of one frame's positions over rings of keys and values.

Shapes: B slots, T positions in a frame, H heads, d head width, C columns of a ring.
"""

from __future__ import annotations

from slipstream.backends.onnx.graph import Graph
from slipstream.backends.onnx.rows import cut
from slipstream.model.config import TransformerConfig, WhisperConfig


class RingAttention:
    """Attention of a frame's T positions over a ring, which holds them too: position p is in column p mod C.

    The graph's input `mask` `[B, masks, T, C]` is added to the scores: one mask for all layers, or one for each.
    """

    def __init__(self, graph: Graph, config: TransformerConfig | WhisperConfig, width: int, *, masks: int = 1) -> None:
        self.config, self.width, self.masks = config, width, masks
        self.mask = graph.input("mask", "float32", ["B", masks, "T", "C"])
        self.columns = graph.input("columns", "int64", ["B", "T", config.num_heads, 3])

    def __call__(self, graph: Graph, layer: int, q: str, k: str, v: str) -> str:
        H, d = self.config.num_heads, self.width
        keys = self._write(graph, f"k.{layer}", k)
        values = self._write(graph, f"v.{layer}", v)
        q = graph.op("Transpose", graph.reshape(q, [0, 0, H, d]), perm=[0, 2, 1, 3])
        scores = graph.op("FusedMatMul", q, keys, domain="com.microsoft", transB=1, alpha=self.config.head_dim**-0.5)
        mask = self.mask if self.masks == 1 else cut(graph, self.mask, layer, layer + 1)
        weights = graph.op("Softmax", graph.op("Add", scores, mask), axis=-1)
        y = graph.op("MatMul", weights, values)
        return graph.reshape(graph.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, H * d])

    def _write(self, graph: Graph, name: str, new: str) -> str:
        H, d = self.config.num_heads, self.width
        ring = graph.input(name, "float32", ["B", H, "C", d])
        written = graph.op("ScatterND", ring, self.columns, graph.reshape(new, [0, 0, H, d]), output=f"{name}.new")
        graph.output(written, "float32", ["B", H, "C", d])
        return written
