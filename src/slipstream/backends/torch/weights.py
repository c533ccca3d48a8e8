"""Linear layers with 8-bit weights. With few streams a step mostly reads weights, and these are half as many bytes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["int8", "fp8"]
FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max


class Int8Linear(nn.Module):
    """`x @ weight.T + bias` with one scale for each output; the input is not rounded. PyTorch's kernel multiplies."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bias = bias
        scale = weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight.float() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))
        self.weight: Tensor
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale)
        return _with_bias(y.view(*x.shape[:-1], -1), self.bias)


class Fp8Linear(nn.Module):
    """The same in e4m3, for GPUs with 8-bit floats (Hopper and later): each row of the input is rounded, too."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bias = bias
        scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX
        self.register_buffer("weight", (weight.float() / scale).to(FP8))
        self.register_buffer("scale", scale.t().contiguous())
        self.weight: Tensor
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        unit = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX
        y = torch._scaled_mm(
            (rows / unit).to(FP8), self.weight.t(), scale_a=unit, scale_b=self.scale, out_dtype=torch.bfloat16
        )
        return _with_bias(y.view(*x.shape[:-1], -1).to(x.dtype), self.bias)


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias


LINEARS: dict[Kind, type[Int8Linear | Fp8Linear]] = {"int8": Int8Linear, "fp8": Fp8Linear}


def quantise_weights(transformer: nn.Module, kind: Kind) -> None:
    """Replace the linear layers of a Transformer, in place, and run the first once: a device may not have the product.

    Raises:
        RuntimeError: PyTorch cannot multiply by these weights on this device.
    """
    tried = False
    for module in list(transformer.modules()):
        for name, linear in list(module.named_children()):
            if isinstance(linear, nn.Linear):
                bias = None if linear.bias is None else linear.bias.detach()
                quantised = LINEARS[kind](linear.weight.detach(), bias)
                setattr(module, name, quantised)
                if not tried:
                    quantised(
                        torch.zeros(1, linear.in_features, device=linear.weight.device, dtype=linear.weight.dtype)
                    )
                    tried = True
