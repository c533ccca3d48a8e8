"""Attention of one new position of every slot over a cache of keys and values.

Shapes: B slots, H heads, d head width, C columns of a cache, V keys of a step.
"""

from __future__ import annotations

import numpy as np

from slipstream.backends.onnx.graph import Graph
from slipstream.backends.onnx.protobuf import DATA_TYPES, Shape
from slipstream.backends.onnx.transformer import CONTRIB, padded_head_dim
from slipstream.model.config import TransformerConfig


class CachedAttention:
    """Attention of one new position over the filled columns of a cache, in the cache's precision.

    Inputs of the graph: `length` int32 `[B]`, the column of each slot's new key, which sees the columns up to it;
    `longest` int32 `[1]`, the greatest `length` plus one, or more; `k.i` and `v.i`, the caches `[B, H, C, d]`. Outputs:
    `k.i.new` and `v.i.new`. `prefix` is put before these names.

    A step of several keys, of which `length` is the column of the last, also has the input `columns` int64
    `[B, V - 1, H, 3]`, the slot, head and column of each of the others, and outputs `k.i.earlier` and `v.i.earlier`, to
    be bound where `k.i` and `v.i` are.
    """

    def __init__(self, graph: Graph, config: TransformerConfig, dtype: str, prefix: str = "", keys: int = 1) -> None:
        self.config, self.dtype, self.prefix, self.keys = config, dtype, prefix, keys
        if keys > 1:
            self.columns = graph.input(f"{prefix}columns", "int64", ["B", keys - 1, config.num_heads, 3])
        self.length = graph.input(f"{prefix}length", "int32", ["B"])
        self.longest = graph.input(f"{prefix}longest", "int32", [1])

    def __call__(self, graph: Graph, layer: int, q: str, k: str, v: str, bias: str | None = None) -> str:
        """`k` and `v`: `[B, V, H * d]`. `bias`: added to the scores, `[B, H, 1, longest]` in the cache's precision."""
        H = self.config.num_heads
        shape: Shape = ["B", H, "C", padded_head_dim(self.config)]
        caches = [graph.input(f"{self.prefix}{name}.{layer}", self.dtype, shape) for name in ("k", "v")]
        outputs = [f"{self.prefix}attention.{layer}", *(f"{name}.new" for name in caches)]
        new = [self._cast(graph, part, self.dtype) for part in (q, k, v)]
        if self.keys > 1:
            for i in range(2):
                new[i + 1], caches[i] = self._write_earlier(graph, new[i + 1], caches[i])
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

    def _write_earlier(self, graph: Graph, new_BVD: str, cache: str) -> tuple[str, str]:
        """Write all keys but the last into a cache; return the last, and the cache."""
        H, d = self.config.num_heads, padded_head_dim(self.config)
        parts = [f"{cache}.{part}" for part in ("others", "last")]
        graph.op_to("Split", [new_BVD, graph.constant(np.array([self.keys - 1, 1]))], parts, axis=1)
        earlier = graph.reshape(parts[0], [0, self.keys - 1, H, d])
        written = graph.op("ScatterND", cache, self.columns, earlier, output=f"{cache}.earlier")
        graph.output(written, self.dtype, ["B", H, "C", d])
        return parts[1], written

    def _cast(self, graph: Graph, x: str, dtype: str) -> str:
        if self.dtype == "float32":
            return x
        return graph.op("Cast", x, to=DATA_TYPES[dtype])
