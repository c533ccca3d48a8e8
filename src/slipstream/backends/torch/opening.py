"""Open a checkpoint with PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from slipstream.backends import RunnerOptions
from slipstream.backends.torch.runner import CUDA_ALIGNMENT, TorchRunner
from slipstream.backends.torch.weights import LINEARS, quantise_weights
from slipstream.checkpoints.checkpoint import Checkpoint
from slipstream.checkpoints.sources import Sources
from slipstream.errors import BackendError, ConfigError
from slipstream.model.capacity import RESERVED_BYTES, stream_bytes
from slipstream.model.config import STTConfig
from slipstream.nn.build import build_codec, build_lm
from slipstream.nn.ring import RingFormat

logger = logging.getLogger(__name__)


def open_runner(sources: Sources, load: Callable[..., Checkpoint], options: RunnerOptions) -> TorchRunner:
    """Open a model on the CPU or on CUDA; the LM's weights are bfloat16 on CUDA by default.

    Raises:
        BackendError: PyTorch cannot use the device.
        ConfigError: The backend does not have the quantisation, or PyTorch does not have it on this device.
    """
    if options.quantize == "int4":
        raise ConfigError("quantize='int4': the torch backend has int8, fp8 and none; onnx and mlx have int4")
    device, dtype = options.device, options.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"device={device!r}: torch {torch.__version__} cannot use it: {reason}") from error
    config, checkpoint = sources.config, load()
    codec = build_codec(config.codec, checkpoint.codec, device=device)
    lm = build_lm(config.lm, checkpoint.lm, device=device, dtype=getattr(torch, dtype))
    if options.quantize in LINEARS:
        try:
            quantise_weights(lm.transformer, options.quantize)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"quantize={options.quantize!r}: torch does not have it on {device}: {reason}") from error
    int8 = options.kv_cache == "int8"
    if not int8 and device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        int8 = needs_int8(config, options.slots, free, lm.text_linear.weight.element_size())
    return TorchRunner(config, codec, lm, **options.common, rings=RingFormat(int8=int8))


def needs_int8(config: STTConfig, slots: int, free_bytes: int, number_bytes: int) -> bool:
    """Whether the keys and values of all slots fit into the device's free memory in 8 bits only; it is logged."""
    needed = slots * stream_bytes(config, number_bytes, align=CUDA_ALIGNMENT)
    if needed + RESERVED_BYTES <= free_bytes:
        return False
    logger.info("%d slots need %.1f GB for keys and values: they are kept in 8 bits", slots, needed / 1e9)
    return True
