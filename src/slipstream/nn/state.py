"""Streaming state as a value: nested dicts and lists of tails and rings, one row for each slot.

A **tail** is a small tensor `[B, ...]`: a convolution's left context, a position, the last token. Modules return a new
one; `commit` copies it into the fixed buffer, for active slots only. A **ring** (`ring.py`) holds keys and values and
is written in place. The next column of an inactive slot is overwritten, and the slot writes it again before a query
reads it, so that only positions need a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from slipstream.nn.ring import Ring

State: TypeAlias = Tensor | Ring | dict[str, "State"] | list["State"]
_OfTail: TypeAlias = Callable[[Tensor], Tensor]
_OfRing: TypeAlias = Callable[[Ring], Ring]


def commit(state: State, update: State, active_B: Tensor) -> None:
    """Copy the tails of `update` into the buffers of `state`, for active slots. The rings are up to date already."""
    for old, new in _tails(state, update):
        torch.where(_mask(active_B, old), new.to(old.dtype), old, out=old)


def first_slots(state: State, slots_R: Tensor) -> State:
    """The first slots, in place: views of the same buffers. `slots_R`: 0, 1, ..., on the device."""
    count = len(slots_R)

    def first(ring: Ring) -> Ring:
        return ring.map(lambda buffer: buffer[:, :count], slots_R=slots_R if ring.format.kernels else None)

    return _map(state, lambda tail: tail[:count], first)


def read_slot(state: State, slot: int, steps: int | None = None, device: str | None = None) -> State:
    """Copy one slot's state, as a batch of one; of each ring only the columns of the first `steps`, where given."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.to(device or tensor.device, copy=True)

    return _map(
        state,
        lambda tail: copy(tail[slot : slot + 1]),
        lambda ring: ring.map(
            lambda buffer: copy(buffer[:, slot : slot + 1, :, : None if steps is None else steps * ring.step]),
            slots_R=None,
        ),
    )


def read_slots(state: State, slots_R: Tensor) -> State:
    """Copy the tails of several slots, as a batch. Rings are copied too, or stay where they are for the kernels."""

    def read(ring: Ring) -> Ring:
        if ring.format.kernels:
            return replace(ring, slots_R=slots_R)
        return ring.map(lambda buffer: buffer.index_select(1, slots_R))

    return _map(state, lambda tail: tail.index_select(0, slots_R), read)


def write_slots(state: State, slots_R: Tensor, saved: State) -> None:
    """Put a copy of `saved`, a batch of one or a row for each of the slots, into `slots_R`, in place.

    If `saved` has fewer columns, it has no positions in the others, and they are masked. Rings that a batch left where
    they are do not change.
    """
    for tail, value in _tails(state, saved):
        tail[slots_R] = value.to(tail)
    for ring, other in _rings(state, saved):
        if other.slots_R is None:
            for buffer, value in zip(ring.tensors, _matching(ring, other), strict=True):
                buffer[:, :, :, : value.shape[3]][:, slots_R] = value.to(buffer.device)


def reset_rows(state: State, fresh: State, reset_B: Tensor) -> None:
    """Give the rows of `reset_B` the state `fresh`, a batch of one with the columns that a fresh stream has.

    Nothing depends on the mask on the host, so that a CUDA graph can hold it.
    """
    for tail, value in _tails(state, fresh):
        torch.where(_mask(reset_B, tail), value, tail, out=tail)
    for ring, other in _rings(state, fresh):
        for buffer, value in zip(ring.tensors, _matching(ring, other), strict=True):
            if value.shape[3] == 0:
                continue
            columns = buffer[:, :, :, : value.shape[3]]
            mask = reset_B.view(1, -1, *[1] * (buffer.dim() - 2))
            if ring.slots_R is None:
                torch.where(mask, value, columns, out=columns)
            else:
                columns.index_copy_(1, ring.slots_R, torch.where(mask, value, columns.index_select(1, ring.slots_R)))


class Savepoints:
    """Memory, allocated once, for what the next steps of a few slots overwrite: their tails, and some columns.

    Args:
        state: The state of all slots.
        entries: Number of slots that can be saved at the same time.
        steps: Most steps after which a slot is restored.
    """

    def __init__(self, state: State, entries: int, steps: int) -> None:
        self.steps = steps
        self._free = list(range(entries))
        self._pool = _map(
            state,
            lambda tail: tail.new_zeros(entries, *tail.shape[1:]),
            lambda ring: ring.map(
                lambda buffer: buffer.new_zeros(
                    *buffer.shape[:1],
                    entries,
                    buffer.shape[2],
                    min(steps * ring.step, ring.capacity),
                    *buffer.shape[4:],
                )
            ),
        )

    def save(self, state: State, slot: int) -> Savepoint | None:
        """Save a slot; None if all entries are in use."""
        if not self._free:
            return None
        savepoint = Savepoint(slot, self._free.pop(), self._free.append)
        entry = savepoint.entry
        for tail, saved in _tails(state, self._pool):
            saved[entry] = tail[slot]
        for ring, kept, position in _positioned(state, self._pool):
            columns = _columns(position[slot], kept, ring)
            for buffer, saved in zip(ring.tensors, kept.tensors, strict=True):
                saved[:, entry] = buffer[:, slot].index_select(2, columns)
        return savepoint

    def restore(self, state: State, savepoint: Savepoint) -> None:
        """Put a slot back to where it was."""
        slot, entry = savepoint.slot, savepoint.entry
        # The columns follow from the position that was saved, which the slot has again once its tails are restored.
        for tail, saved in _tails(state, self._pool):
            tail[slot] = saved[entry]
        for ring, kept, position in _positioned(state, self._pool):
            columns = _columns(position[slot], kept, ring)
            for buffer, saved in zip(ring.tensors, kept.tensors, strict=True):
                buffer[:, slot].index_copy_(2, columns, saved[:, entry])


class Savepoint:
    """A saved slot. Its entry is free again when nothing refers to it, restored or not."""

    def __init__(self, slot: int, entry: int, free: Callable[[int], None]) -> None:
        self.slot = slot
        self.entry = entry
        self._free = free

    def __del__(self) -> None:
        self._free(self.entry)


def _columns(position: Tensor, kept: Ring, ring: Ring) -> Tensor:
    """The columns that the steps after `position` write."""
    return (position + torch.arange(kept.capacity, device=position.device)) % ring.capacity


def _mask(rows_B: Tensor, tail: Tensor) -> Tensor:
    return rows_B.view(-1, *[1] * (tail.dim() - 1))


def _matching(ring: Ring, saved: Ring) -> list[Tensor]:
    """The buffers of a saved ring, which must be of the same kind."""
    if (ring.k.dtype == torch.int8) != (saved.k.dtype == torch.int8) or ring.format.hadamard != saved.format.hadamard:
        raise ValueError(f"a state with rings as {saved.format} does not fit a runner with rings as {ring.format}")
    return [buffer.to(own.dtype) for buffer, own in zip(saved.tensors, ring.tensors, strict=True)]


def _map(state: State, of_tail: _OfTail, of_ring: _OfRing) -> State:
    if isinstance(state, Tensor):
        return of_tail(state)
    if isinstance(state, Ring):
        return of_ring(state)
    if isinstance(state, dict):
        return {name: _map(part, of_tail, of_ring) for name, part in state.items()}
    return [_map(part, of_tail, of_ring) for part in state]


def _tails(left: State, right: State) -> Iterator[tuple[Tensor, Tensor]]:
    for one, other in _leaves(left, right):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            yield one, other


def _rings(left: State, right: State) -> Iterator[tuple[Ring, Ring]]:
    for one, other in _leaves(left, right):
        if isinstance(one, Ring) and isinstance(other, Ring):
            yield one, other


def _positioned(state: State, pool: State) -> Iterator[tuple[Ring, Ring, Tensor]]:
    """Each ring with that of the pool, and the next position of each slot, which is next to it."""
    if isinstance(state, dict):
        position = state.get("position")
        for one, other in _pairs(state, pool):
            if isinstance(one, Ring) and isinstance(other, Ring):
                assert isinstance(position, Tensor)
                yield one, other, position
            else:
                yield from _positioned(one, other)
    elif isinstance(state, list):
        for one, other in _pairs(state, pool):
            yield from _positioned(one, other)


def _leaves(left: State, right: State) -> Iterator[tuple[State, State]]:
    if isinstance(left, Tensor | Ring):
        yield left, right
    else:
        for one, other in _pairs(left, right):
            yield from _leaves(one, other)


def _pairs(left: State, right: State) -> list[tuple[State, State]]:
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [(left[name], right[name]) for name in left]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return list(zip(left, right, strict=True))
    raise ValueError("the two states do not have the same shape: were they made by the same model?")
