"""Keys and values of attention layers in ring buffers, in the type of the weights or as 8-bit integers.

Position p is in column p mod C. Shapes: L layers, B slots, R rows of a batch, H heads, C columns, D numbers in a head,
T positions of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

INT8_MAX = 127


@dataclass(frozen=True)
class RingFormat:
    """How rings are kept.

    Attributes:
        int8: One byte per number, with a float32 scale for each position and head.
        hadamard: With `int8`, turn queries and keys by a Hadamard matrix first. Their products stay the same, and a few
            large channels no longer decide the scale.
        align: The capacity is a multiple of this. Attention kernels pad masks whose length is not a multiple of 8, in
            every layer.
        dtype: Type of keys and values without `int8`, and of what attention computes; that of the weights by default.
        kernels: Append and attend with the kernels of `kernels.py`, which leave the slots of a batch where they are.
    """

    int8: bool = False
    hadamard: bool = False
    align: int = 1
    dtype: torch.dtype | None = None
    kernels: bool = False

    def capacity(self, columns: int) -> int:
        """The number of columns to allocate when `columns` are needed."""
        return -(-columns // self.align) * self.align


@dataclass(frozen=True)
class Ring:
    """The keys and values of all layers of a Transformer, `[L, B, H, C, D]`.

    Attributes:
        k_scale: With int8, the unit of each key's numbers, `[L, B, H, C]`.
        step: Positions that one frame writes.
        slots_R: The slot of each row of the batch; None where row r is slot r.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None
    format: RingFormat = field(default_factory=RingFormat)
    step: int = 1
    slots_R: Tensor | None = None

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int, int, int],
        *,
        device: torch.device,
        dtype: torch.dtype,
        format: RingFormat | None = None,
        step: int = 1,
    ) -> Ring:
        """Rings of `shape` `[L, B, H, C, D]`; C is rounded up to the format's alignment."""
        format = format or RingFormat()
        *outer, columns, dim = shape
        shape_C = (*outer, format.capacity(columns))

        # Zeros, not NaN: a masked column has weight 0, and 0 * NaN would still be NaN.
        def zeros() -> Tensor:
            return torch.zeros(
                (*shape_C, dim), device=device, dtype=torch.int8 if format.int8 else format.dtype or dtype
            )

        def scales() -> Tensor | None:
            return torch.zeros(shape_C, device=device) if format.int8 else None

        return cls(zeros(), zeros(), scales(), scales(), format, step)

    @property
    def capacity(self) -> int:
        """C, the number of columns."""
        return self.k.shape[3]

    @property
    def tensors(self) -> list[Tensor]:
        """The buffers, of which axis 1 is the slot and axis 3 the column."""
        return [tensor for tensor in (self.k, self.v, self.k_scale, self.v_scale) if tensor is not None]

    def map(self, change: Callable[[Tensor], Tensor], **changes: Any) -> Ring:
        """The ring with every buffer changed."""
        k_scale = None if self.k_scale is None else change(self.k_scale)
        v_scale = None if self.v_scale is None else change(self.v_scale)
        return replace(self, k=change(self.k), v=change(self.v), k_scale=k_scale, v_scale=v_scale, **changes)

    def layer(self, index: int) -> LayerRing:
        """The ring of one layer."""
        scales = (None, None) if self.k_scale is None or self.v_scale is None else (self.k_scale, self.v_scale)
        k_scale, v_scale = (scale if scale is None else scale[index] for scale in scales)
        return LayerRing(self.k[index], self.v[index], k_scale, v_scale, self.format, self.slots_R)


@dataclass(frozen=True)
class LayerRing:
    """The keys and values of one attention layer, `[B, H, C, D]`: views of a `Ring`."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    format: RingFormat
    slots_R: Tensor | None

    def write(self, columns_RT: Tensor, k_RHTD: Tensor, v_RHTD: Tensor) -> None:
        """Write T new keys and values into the given columns of each slot, in place."""
        rows = torch.arange(columns_RT.shape[0], device=columns_RT.device)[:, None]
        for new, buffer, scale in ((k_RHTD, self.k, self.k_scale), (v_RHTD, self.v, self.v_scale)):
            new_RTHD = new.transpose(1, 2)
            if scale is not None:
                new_RTHD, scale[rows, :, columns_RT] = quantise(new_RTHD)
            buffer[rows, :, columns_RT] = new_RTHD.to(buffer.dtype)

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """All keys and values, as `dtype`."""
        if self.k_scale is None or self.v_scale is None:
            return self.k, self.v
        return dequantise(self.k, self.k_scale, dtype), dequantise(self.v, self.v_scale, dtype)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each vector `[..., D]` to integers of -127 to 127, and return them with their unit `[...]` in float32."""
    x = x.float()
    largest = x.abs().amax(dim=-1)
    unit = torch.where(largest > 0, largest / INT8_MAX, 1.0)
    # Not `round`, which rounds halves to even: the kernels must round the same way.
    return (x / unit[..., None] + 0.5).floor().to(torch.int8), unit


def dequantise(x: Tensor, unit: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `quantise`, up to its rounding."""
    return (x * unit[..., None]).to(dtype)


def hadamard(x: Tensor) -> Tensor:
    """Multiply each vector `[..., D]` by an orthogonal matrix: random signs, then a Hadamard matrix.

    If D is not a power of 2, the matrix turns blocks of the largest power of 2 that divides it. The outputs
    are in the order of repeated sums and differences of neighbours, as in the kernel.
    """
    dim = x.shape[-1]
    block = dim & -dim
    x = (x.float() * signs(dim, x.device)).unflatten(-1, (-1, block))
    for _ in range(block.bit_length() - 1):
        even, odd = x[..., 0::2], x[..., 1::2]
        x = torch.cat([even + odd, even - odd], dim=-1)
    turned: Tensor = (x * block**-0.5).flatten(-2)
    return turned


@lru_cache
def signs(dim: int, device: torch.device) -> Tensor:
    """Signs that break the pattern of channels: the same in every process, since snapshots hold turned keys."""
    generator = torch.Generator().manual_seed(dim)
    return (torch.randint(0, 2, (dim,), generator=generator) * 2 - 1).float().to(device)
