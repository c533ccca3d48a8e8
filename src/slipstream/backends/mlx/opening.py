"""Open a checkpoint with MLX."""

from __future__ import annotations

from collections.abc import Callable

from slipstream.backends import RunnerOptions
from slipstream.backends.mlx.runner import MLXRunner
from slipstream.checkpoints.checkpoint import Checkpoint
from slipstream.checkpoints.sources import Sources


def open_runner(sources: Sources, load: Callable[..., Checkpoint], options: RunnerOptions) -> MLXRunner:
    """Open a model; the LM's weights are bfloat16 by default. A quantised checkpoint stays quantised."""
    bits = {"int8": 8, "int4": 4}.get(options.quantize or "none")
    dtype = "bfloat16" if options.dtype == "auto" else options.dtype
    checkpoint = load(keep_quantized=True)
    return MLXRunner(sources.config, checkpoint.lm, checkpoint.codec, dtype=dtype, quantize=bits, **options.common)
