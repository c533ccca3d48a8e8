"""Which attention kernel runs on this device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from slipstream.model.config import TransformerConfig
from slipstream.model.numerics import ring_capacity
from slipstream.nn import fused
from slipstream.nn.layers import locate, ring_attention
from slipstream.nn.ring import Ring, RingFormat

logger = logging.getLogger(__name__)

SDPA_PRIORITY = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
"""PyTorch's kernels, the best first. cuDNN's, which PyTorch would try first, raises where it has no plan for a mask,
instead of leaving the call to another one; flash attention takes no mask."""

LARGEST_ERROR = 0.03
"""Of the attention's output, relative: bfloat16 differs by about 0.006, a wrong column by about 1."""


@contextmanager
def chosen_sdpa(device: torch.device) -> Iterator[None]:
    """Let `scaled_dot_product_attention` choose among `SDPA_PRIORITY` on CUDA, and freely elsewhere."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(list(SDPA_PRIORITY), set_priority=True):
        yield


def sdpa_name(config: TransformerConfig, device: torch.device, dtype: torch.dtype, step: int) -> str:
    """Return the name of the kernel that runs for this Transformer: the first that accepts its shapes."""
    q = torch.zeros(1, config.num_heads, step, config.head_dim, device=device, dtype=dtype)
    k = torch.zeros(1, config.num_heads, 64, config.head_dim, device=device, dtype=dtype)
    mask = torch.zeros(1, 1, step, 64, device=device, dtype=dtype)
    for backend in SDPA_PRIORITY:
        try:
            with sdpa_kernel([backend]):
                F.scaled_dot_product_attention(q, k, k, mask)
        except RuntimeError:
            continue
        return str(backend.name).lower()
    return "none"


def kernels_fit(config: TransformerConfig, step: int) -> bool:
    """Whether the ring kernels have this Transformer's shapes."""
    return config.head_dim in fused.HEAD_DIMS and step <= fused.MAX_STEP


def kernels_work(
    config: TransformerConfig, rings: RingFormat, device: torch.device, dtype: torch.dtype, step: int
) -> bool:
    """Compile the ring kernels for this Transformer, and compare them with PyTorch; a failure is logged."""
    try:
        error = kernel_error(config, rings, device, dtype, step)
    except Exception as failure:  # whatever a compiler or driver raises, PyTorch still works
        logger.warning("attention in PyTorch: the kernels failed: %s: %s", type(failure).__name__, failure)
        return False
    if error > LARGEST_ERROR:
        logger.warning("attention in PyTorch: the kernels differ from it by %.1g", error)
    return error <= LARGEST_ERROR


@torch.inference_mode()
def kernel_error(
    config: TransformerConfig, rings: RingFormat, device: torch.device, dtype: torch.dtype, step: int
) -> float:
    """Return the largest relative error of the kernels' attention in three steps of two slots, one past the wrap."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, config.num_heads, ring_capacity(config.context, step), config.head_dim)
    plain, other = (Ring.empty(shape, device=device, dtype=dtype, format=rings, step=step) for _ in range(2))
    slots_R = torch.tensor([2, 0], device=device)
    other = replace(other, slots_R=slots_R)
    position_R, errors = torch.tensor([0, plain.capacity - step], device=device), []
    for _ in range(3):
        numbers = torch.randn(2, step, 3, config.num_heads, config.head_dim, generator=generator)
        qkv = numbers.to(device, dtype)
        position_RT = position_R[:, None] + torch.arange(step, device=device)
        at = locate(config, position_RT, plain.capacity, dtype)
        rows = plain.map(lambda buffer: buffer[:, :2])
        theirs, ours = ring_attention(qkv, at, rows.layer(0)).float(), fused.ring_attention(qkv, at, other.layer(0))
        errors.append(float((ours.float() - theirs).norm() / theirs.norm()))
        position_R += step
    return max(errors)
