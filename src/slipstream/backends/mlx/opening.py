"""Open a checkpoint with MLX."""

from __future__ import annotations

from collections.abc import Callable

from slipstream.backends import RunnerOptions
from slipstream.backends.mlx.devices import is_apple_silicon
from slipstream.backends.mlx.runner import MLXRunner
from slipstream.checkpoints.checkpoint import Checkpoint
from slipstream.checkpoints.sources import Sources
from slipstream.errors import BackendError


def open_runner(sources: Sources, load: Callable[..., Checkpoint], options: RunnerOptions) -> MLXRunner:
    """Open a model; the LM's weights are bfloat16 by default. A quantised checkpoint stays quantised.

    Raises:
        BackendError: The device is not on this machine.
    """
    if options.device != "cpu" and not is_apple_silicon():
        raise BackendError(f"device={options.device!r}: the mlx backend needs a Mac with Apple silicon for it")
    bits = {"int8": 8, "int4": 4}.get(options.quantize or "none")
    dtype = "bfloat16" if options.dtype == "auto" else options.dtype
    checkpoint = load(keep_quantized=True)
    return MLXRunner(sources.config, checkpoint.lm, checkpoint.codec, dtype=dtype, quantize=bits, **options.common)
