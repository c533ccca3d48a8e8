"""Streaming state as a value: nested dicts and lists of tails and rings, one row for each slot.

A **tail** is a small tensor `[B, ...]`: a convolution's left context, a position, the last token. Modules return a new
one; `commit` copies it into the fixed buffer, for active slots only. A **ring** holds keys and values `[B, H, C, D]`
and is written in place. The next column of an inactive slot is overwritten, and the slot writes it again before a query
reads it, so that only positions need a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ring:
    """The keys and values of one attention layer, `[B, H, C, D]`: position p is in column p mod C."""

    k: Tensor
    v: Tensor

    @classmethod
    def empty(
        cls, batch: int, heads: int, capacity: int, dim: int, *, device: torch.device, dtype: torch.dtype
    ) -> Ring:
        # Zeros, not NaN: a masked column has weight 0, and 0 * NaN would still be NaN.
        shape = (batch, heads, capacity, dim)
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def write(self, columns_BT: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> None:
        """Write T new keys and values into the given columns of each slot, in place."""
        rows = torch.arange(columns_BT.shape[0], device=columns_BT.device)[:, None]
        self.k[rows, :, columns_BT] = k_BHTD.transpose(1, 2)
        self.v[rows, :, columns_BT] = v_BHTD.transpose(1, 2)


State: TypeAlias = Tensor | Ring | dict[str, "State"] | list["State"]


def commit(state: State, update: State, active_B: Tensor) -> None:
    """Copy the tails of `update` into the buffers of `state`, for active slots. The rings are up to date already."""
    if isinstance(state, Tensor):
        assert isinstance(update, Tensor)
        mask = active_B.view(-1, *[1] * (state.dim() - 1))
        state.copy_(torch.where(mask, update, state))
    elif not isinstance(state, Ring):
        for old, new in _pairs(state, update):
            commit(old, new, active_B)


def first_slots(state: State, count: int) -> State:
    """The first `count` slots, in place: views of the same buffers."""
    if isinstance(state, Tensor):
        return state[:count]
    if isinstance(state, Ring):
        return Ring(state.k[:count], state.v[:count])
    if isinstance(state, dict):
        return {name: first_slots(part, count) for name, part in state.items()}
    return [first_slots(part, count) for part in state]


def read_slot(state: State, slot: int, columns: int | None = None) -> State:
    """Copy one slot's state, as a batch of one; of each ring only the first `columns`, where given."""
    if isinstance(state, Tensor):
        return state[slot : slot + 1].clone()
    if isinstance(state, Ring):
        return Ring(state.k[slot : slot + 1, :, :columns].clone(), state.v[slot : slot + 1, :, :columns].clone())
    if isinstance(state, dict):
        return {name: read_slot(part, slot, columns) for name, part in state.items()}
    return [read_slot(part, slot, columns) for part in state]


def read_slots(state: State, slots_R: Tensor) -> State:
    """Copy the state of several slots, as a batch."""
    if isinstance(state, Tensor):
        return state.index_select(0, slots_R)
    if isinstance(state, Ring):
        return Ring(state.k.index_select(0, slots_R), state.v.index_select(0, slots_R))
    if isinstance(state, dict):
        return {name: read_slots(part, slots_R) for name, part in state.items()}
    return [read_slots(part, slots_R) for part in state]


def write_slots(state: State, slots_R: Tensor, saved: State) -> None:
    """Put a copy of `saved`, a batch of one or a row for each of the slots, into `slots_R`, in place.

    If `saved` has fewer columns, it has no positions in the others, and they are masked.
    """
    if isinstance(state, Tensor):
        assert isinstance(saved, Tensor)
        state[slots_R] = saved.to(state)
    elif isinstance(state, Ring):
        assert isinstance(saved, Ring)
        columns = saved.k.shape[2]
        state.k[:, :, :columns][slots_R] = saved.k.to(state.k)
        state.v[:, :, :columns][slots_R] = saved.v.to(state.v)
    else:
        for buffer, value in _pairs(state, saved):
            write_slots(buffer, slots_R, value)


def _pairs(left: State, right: State) -> list[tuple[State, State]]:
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [(left[name], right[name]) for name in left]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return list(zip(left, right, strict=True))
    raise ValueError("the two states do not have the same shape: were they made by the same model?")
