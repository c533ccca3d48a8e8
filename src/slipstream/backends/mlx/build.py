"""Create modules from canonical weights, also from quantised ones.

A quantised matrix is three tensors: packed integers (uint32) in `name.weight`, and a scale and a bias for each group of
neighbours in a row, in `name.scales` and `name.biases`.
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
    """Create Mimi's encoder in float32: lower precision changes its codes. The decoder's tensors are not used.

    Args:
        config: The codec.
        weights: Tensors under canonical names.
        quantize: If set, the matrices of a Whisper encoder are kept in 8 bits.

    Raises:
        ValueError: Tensors are missing or have wrong shapes; the message names them.
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
    """Create the LM.

    Args:
        config: The LM.
        weights: Tensors under canonical names.
        dtype: Type of the weights, a name in `DTYPES`.
        quantize: 4 or 8 bits for its matrices. Quantised matrices, and those whose rows are not whole groups, do not
            change.

    Raises:
        ConfigError: The type or number of bits is not supported, or contradicts that of the weights.
        ValueError: Tensors are missing or have wrong shapes; the message names them.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: the MLX backend supports {' and '.join(DTYPES)}")
    if quantize is not None and quantize not in GROUP_SIZES:
        raise ConfigError(f"quantize={quantize}: expected {' or '.join(map(str, GROUP_SIZES))} bits")
    # Tables of several codebooks or heads are one matrix in MLX.
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
    # MLX computes lazily, on the thread that reads a result, and another thread may call the runner.
    mx.eval(module.parameters())
