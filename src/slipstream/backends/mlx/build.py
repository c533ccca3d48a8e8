"""Modules from canonical weights, quantised ones included.

A quantised matrix `name.weight` holds packed integers (uint32), with `name.scales` and `name.biases` beside it: one
of each for every group of neighbours in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy.typing as npt
from mlx.utils import tree_flatten

from slipstream.backends.mlx.lm import LM
from slipstream.backends.mlx.mimi import Mimi
from slipstream.checkpoints.quantization import GROUP_SIZES
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig, LMConfig
from slipstream.model.numerics import codebook_vectors

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}

Arrays = Mapping[str, npt.NDArray[Any]]


def build_codec(config: CodecConfig, weights: Arrays, *, quantize: int | None = None) -> Mimi:
    """Mimi's encoder with the given canonical weights, in float32: its codes change with less.

    With `quantize` (any number of bits) the matrices of a Whisper encoder are kept in 8 bits.

    Raises `ValueError` that names missing tensors and wrong shapes. The decoder's are left aside.
    """
    module = Mimi(config)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, weight in weights.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "embedding_sum" and stem + ".cluster_usage" in weights:
            vectors, half_norms = codebook_vectors(weight, weights[stem + ".cluster_usage"])
            arrays |= {stem + ".vectors": vectors, stem + ".half_norms": half_norms}
        else:
            arrays[name] = _convolution(weight) if weight.ndim == 3 else weight
    used = dict(tree_flatten(module.parameters())).keys()
    module.load_weights([(name, mx.array(array)) for name, array in arrays.items() if name in used])
    module.set_dtype(mx.float32)
    if quantize is not None and config.whisper:
        _quantize(module.encoder, 8)
    _compute(module)
    return module


def build_lm(config: LMConfig, weights: Arrays, *, dtype: str = "float32", quantize: int | None = None) -> LM:
    """The LM with the given canonical weights, in `dtype`; with `quantize`, its matrices in 4 or 8 bits.

    Matrices that are quantised already stay as they are, and so do those whose rows are not whole groups.
    Raises `ConfigError` for a type or number of bits that there is not, or not of these weights, `ValueError` that
    names missing tensors and wrong shapes.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: the MLX backend has {' and '.join(DTYPES)}")
    if quantize is not None and quantize not in GROUP_SIZES:
        raise ConfigError(f"quantize={quantize}: expected {' or '.join(map(str, GROUP_SIZES))} bits")
    # The tables of several codebooks or heads are one matrix here.
    arrays = {name: mx.array(a.reshape(-1, a.shape[-1]) if a.ndim == 3 else a) for name, a in weights.items()}
    module = LM(config)

    def packing(path: str, leaf: nn.Module) -> dict[str, int] | bool:
        if f"{path}.scales" not in arrays:
            return False
        columns = leaf.weight.shape[-1]
        bits = 32 * arrays[f"{path}.weight"].shape[-1] // columns
        if quantize not in (None, bits):
            raise ConfigError(f"quantize={quantize}: these weights are in {bits} bits already")
        return {"bits": bits, "group_size": columns // arrays[f"{path}.scales"].shape[-1]}

    nn.quantize(module, class_predicate=packing)
    module.load_weights(list(arrays.items()))
    module.set_dtype(DTYPES[dtype])
    if quantize is not None:
        _quantize(module, quantize)
    _compute(module)
    return module


def _quantize(module: nn.Module, bits: int) -> None:
    """Quantise the matrices whose rows are whole groups."""
    group = GROUP_SIZES[bits]
    nn.quantize(
        module,
        group,
        bits,
        class_predicate=lambda _, leaf: hasattr(leaf, "to_quantized") and leaf.weight.shape[-1] % group == 0,
    )


def _convolution(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`[out, in, kernel]` to MLX's `[out, kernel, in]`; a kernel of one is a linear layer, `[out, in]`."""
    return weight[..., 0] if weight.shape[-1] == 1 else weight.swapaxes(1, 2)


def _compute(module: nn.Module) -> None:
    # MLX computes on demand, on the thread that asked for it, but a runner's steps may come from another thread.
    mx.eval(module.parameters())
