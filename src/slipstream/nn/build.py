"""Create modules from canonical weights, allocated once, in their type and on their device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.model.config import CodecConfig, LMConfig
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Mimi

_Module = TypeVar("_Module", bound=nn.Module)
Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def build_codec(config: CodecConfig, weights: Arrays, *, device: str | torch.device = "cpu") -> Mimi:
    """Create Mimi from canonical weights, in float32: lower precision changes its codes."""
    return _load(Mimi(config), weights, torch.device(device), torch.float32)


def build_lm(
    config: LMConfig,
    weights: Arrays,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LM:
    """Create the LM from canonical weights, in `dtype`."""
    with torch.device("meta"):
        module = LM(config)
    return _load(module, weights, torch.device(device), dtype)


def to_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor that shares the array's memory, or a copy if that is read-only. Accepts bfloat16."""
    array = np.require(array, requirements=["C", "W"])
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _load(module: _Module, weights: Arrays, device: torch.device, dtype: torch.dtype) -> _Module:
    tensors = {name: to_tensor(array).to(device, dtype) for name, array in weights.items()}
    module.load_state_dict(tensors, assign=True)
    return module.to(device).eval().requires_grad_(False)
