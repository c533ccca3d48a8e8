"""Open a checkpoint with ONNX Runtime."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slipstream.backends import RunnerOptions
from slipstream.backends.onnx.export import CODEC_FILE, LM_FILE, cache_folder, codec_graph_of, export
from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.checkpoints.checkpoint import Checkpoint
from slipstream.checkpoints.sources import Sources
from slipstream.errors import ConfigError
from slipstream.model.names import lm_shapes

QUANTIZE_ABOVE = 100_000_000
"""LMs with more parameters than this have int8 weights by default, and are converted once and cached."""


def open_runner(sources: Sources, load: Callable[..., Checkpoint], options: RunnerOptions) -> OnnxRunner:
    """Open a model on the CPU in float32.

    A large LM is converted once into the cache folder, with int8 weights unless `quantize` is `none`.

    Raises:
        ConfigError: The type is not float32, or quantisation is requested for a model that is converted already.
        CheckpointError: The files are damaged, or the codec's graph has another lookahead than the configuration.
    """
    if options.dtype not in ("auto", "float32"):
        raise ConfigError(f"dtype={options.dtype!r}: the onnx backend has float32; for less memory use quantize='int8'")
    config, quantize = sources.config, options.quantize
    common = options.common | {"threads": options.threads}
    if sources.lm[0].suffix == ".onnx":
        if quantize is not None:
            raise ConfigError(f"quantize={quantize!r}: {sources.lm[0]} is converted already: its weights cannot change")
        return OnnxRunner(config, sources.lm[0], codec_graph_of(sources.codec[0], config.codec), **common)
    large = sum(math.prod(shape) for shape in lm_shapes(config.lm).values()) > QUANTIZE_ABOVE
    default = "int8" if large or config.codec.whisper else None
    bits: Any = default if quantize is None else None if quantize == "none" else quantize
    if not large:
        checkpoint = load(keep_int8=bits == "int8")
        return OnnxRunner(config, checkpoint.lm, checkpoint.codec, quantize=bits, **common)
    folder = cache_folder(_cache_root() / "onnx", sources, bits)
    export(load, folder, quantize=bits, progress=options.progress)
    return OnnxRunner(config, folder / LM_FILE, folder / CODEC_FILE, **common)


def _cache_root() -> Path:
    """The folder of converted models: `SLIPSTREAM_CACHE`, or `slipstream` in the user's cache folder."""
    if (named := os.environ.get("SLIPSTREAM_CACHE")) is not None:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "slipstream"
