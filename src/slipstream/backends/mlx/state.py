"""Streaming state as a value: nested dicts and lists of tails and rings, one row for each slot.

A **tail** is a small array `[B, ...]`: a convolution's left context, the last token. A **ring** holds the keys and
values of one attention layer. Positions grow without limit, so the runner keeps them on the host as
64-bit integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import numpy as np


class Ring(NamedTuple):
    """The keys and values of one attention layer, `[B, H, C, D]`: position p is in column p mod C."""

    k: mx.array
    v: mx.array

    @classmethod
    def empty(cls, batch: int, heads: int, capacity: int, dim: int, dtype: mx.Dtype) -> Ring:
        # Zeros, not NaN: a masked column has weight 0, and 0 * NaN would still be NaN.
        return cls(*(mx.zeros((batch, heads, capacity, dim), dtype) for _ in range(2)))

    def write(self, columns_BT: mx.array, k_BHTD: mx.array, v_BHTD: mx.array) -> Ring:
        """Return the ring with T new keys and values in the given columns of each slot."""
        columns = columns_BT[:, None, :, None]
        return Ring(
            mx.put_along_axis(self.k, columns, k_BHTD, axis=2), mx.put_along_axis(self.v, columns, v_BHTD, axis=2)
        )


State = TypeVar("State")
"""An `mx.array` (a tail), a `Ring`, or a dict or list of states."""


def commit(state: State, update: State, active_B: mx.array) -> State:
    """Return the tails of `update` for active slots and those of `state` for the others, and the rings of `update`.

    The next column of an inactive slot is overwritten. The slot writes it again before a query reads it.
    """

    def choose(old: mx.array, new: mx.array) -> mx.array:
        return mx.where(active_B.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    new: State = _join(state, update, choose, lambda _, ring: ring)
    return new


def read_slot(state: State, slot: int, columns: int | None = None) -> State:
    """Copy one slot's state, as a batch of one; of each ring only the first `columns`, where given."""

    def copy(tail: mx.array) -> mx.array:
        return mx.take(tail, mx.array([slot]), axis=0)  # a slice would keep the whole batch in memory

    def copy_ring(ring: Ring) -> Ring:
        return Ring(*(mx.contiguous(copy(part)[:, :, :columns]) for part in ring))

    saved: State = _join(state, state, lambda tail, _: copy(tail), lambda ring, _: copy_ring(ring))
    return saved


def write_slots(state: State, slots: Sequence[int], saved: State) -> State:
    """The state with `saved`, a batch of one, in each of `slots`.

    If `saved` has fewer columns, it has no positions in the others, and they are masked.
    """

    def put(tail: mx.array, row: mx.array) -> mx.array:
        chosen_B = np.isin(np.arange(tail.shape[0]), list(slots))
        return mx.where(mx.array(chosen_B.reshape(-1, *[1] * (tail.ndim - 1))), row.astype(tail.dtype), tail)

    def put_columns(part: mx.array, row: mx.array) -> mx.array:
        rows = put(part[:, :, : row.shape[2]], row)
        return mx.slice_update(part, rows, mx.array([0]), axes=[2])

    def put_ring(ring: Ring, row: Ring) -> Ring:
        return Ring(put_columns(ring.k, row.k), put_columns(ring.v, row.v))

    new: State = _join(state, saved, put, put_ring)
    return new


def _join(
    left: Any, right: Any, tail: Callable[[mx.array, mx.array], mx.array], ring: Callable[[Ring, Ring], Ring]
) -> Any:
    if isinstance(left, mx.array) and isinstance(right, mx.array):
        return tail(left, right)
    if isinstance(left, Ring) and isinstance(right, Ring):
        return ring(left, right)
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return {name: _join(part, right[name], tail, ring) for name, part in left.items()}
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [_join(*pair, tail, ring) for pair in zip(left, right, strict=True)]
    raise ValueError("the two states do not have the same shape: were they made by the same model?")
