"""Attention of one new position of every slot over a cache of keys and values.

Shapes: B slots, H heads, d head width, C columns of a cache.
"""

from __future__ import annotations

from slipstream.backends.onnx.graph import Graph
from slipstream.backends.onnx.protobuf import DATA_TYPES, Shape
from slipstream.backends.onnx.transformer import CONTRIB, padded_head_dim
from slipstream.model.config import TransformerConfig


class CachedAttention:
    """Attention of one new position over the filled columns of a cache, in the cache's precision.

    Inputs of the graph: `length` int32 `[B]`, the column of each slot's new key, which sees the columns up to it;
    `longest` int32 `[1]`, the greatest `length` plus one, or more; `k.i` and `v.i`, the caches `[B, H, C, d]`. Outputs:
    `k.i.new` and `v.i.new`. `prefix` is put before these names.
    """

    def __init__(self, graph: Graph, config: TransformerConfig, dtype: str, prefix: str = "") -> None:
        self.config, self.dtype, self.prefix = config, dtype, prefix
        self.length = graph.input(f"{prefix}length", "int32", ["B"])
        self.longest = graph.input(f"{prefix}longest", "int32", [1])

    def __call__(self, graph: Graph, layer: int, q: str, k: str, v: str, bias: str | None = None) -> str:
        """`bias`: added to the scores, `[B, H, 1, longest]` in the cache's precision."""
        H = self.config.num_heads
        shape: Shape = ["B", H, "C", padded_head_dim(self.config)]
        caches = [graph.input(f"{self.prefix}{name}.{layer}", self.dtype, shape) for name in ("k", "v")]
        outputs = [f"{self.prefix}attention.{layer}", *(f"{name}.new" for name in caches)]
        new = [self._cast(graph, part, self.dtype) for part in (q, k, v)]
        graph.op_to(
            "GroupQueryAttention",
            [*new, *caches, self.length, self.longest, *(["", "", "", bias] if bias else [])],
            outputs,
            domain=CONTRIB,
            num_heads=H,
            kv_num_heads=H,
            scale=self.config.head_dim**-0.5,
        )
        for name in outputs[1:]:
            graph.output(name, self.dtype, shape)
        return self._cast(graph, outputs[0], "float32")

    def _cast(self, graph: Graph, x: str, dtype: str) -> str:
        if self.dtype == "float32":
            return x
        return graph.op("Cast", x, to=DATA_TYPES[dtype])
