"""Steps of several operations that one kernel can do, each with the same arithmetic in PyTorch.

The kernels (`kernels.py`) run on CUDA tensors, and in Triton's interpreter on CPU tensors, outside of training. All
other calls use PyTorch.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.nn.ring import LayerRing

if TYPE_CHECKING:
    from slipstream.nn.layers import Positions

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HEAD_DIMS = (16, 32, 64, 128)
"""Sizes of a head that the ring kernels have."""
MAX_STEP = 2
"""Most positions of a step that the ring kernels have."""


def available(device: torch.device) -> bool:
    """Whether the kernels can run on tensors of this device."""
    return (device.type == "cuda" or INTERPRETED) and importlib.util.find_spec("triton") is not None


def _fusible(x: Tensor) -> bool:
    return (x.is_cuda or INTERPRETED) and not torch.is_grad_enabled() and available(x.device)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation of the last axis, in float32."""
    if _fusible(x):
        from slipstream.nn import kernels

        return kernels.rms_norm(x, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def silu_multiply(x: Tensor) -> Tensor:
    """`silu(gate) * value` of `x = [gate, value]`, `[..., 2 F] -> [..., F]`."""
    if _fusible(x):
        from slipstream.nn import kernels

        return kernels.silu_multiply(x)
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def elu_after(state: Tensor, x: Tensor) -> Tensor:
    """A convolution's left context, then the activation of its input: `[B, C, K]`, `[B, C, S] -> [B, C, K + S]`."""
    if _fusible(x):
        from slipstream.nn import kernels

        return kernels.elu_after(state, x)
    return torch.cat([state, F.elu(x)], dim=-1)


def ring_attention(qkv_RT3HD: Tensor, at: Positions, ring: LayerRing) -> Tensor:
    """`layers.ring_attention` with kernels that read only the filled columns of the slots of the batch."""
    from slipstream.nn import kernels

    q_RHTD = kernels.append(qkv_RT3HD, at.rotation, ring, at.position_BT)
    return kernels.attend(q_RHTD, ring, at.position_BT, at.context)
