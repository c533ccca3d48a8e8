"""Streaming with Kyutai's calls: in its streaming mode, an object holds the state of its streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.nn.state import State, commit, read_slot, write_slots


@dataclass
class Streams:
    """A batch of streams: their state in fixed buffers, the initial state for resets, and which streams advance."""

    state: dict[str, State]
    fresh: State
    exec_mask: Tensor

    @property
    def batch_size(self) -> int:
        return self.exec_mask.shape[0]

    def commit(self, update: dict[str, State]) -> None:
        """Store the named parts of the state, for the streams that advance."""
        for name, part in update.items():
            commit(self.state[name], part, self.exec_mask)


class Streaming(ABC):
    """An object that has a state inside a `streaming(batch_size)` block."""

    _streams: Streams | None = None

    @abstractmethod
    def _init_state(self, batch_size: int) -> dict[str, State]: ...

    @property
    @abstractmethod
    def _device(self) -> torch.device: ...

    @property
    def is_streaming(self) -> bool:
        """Whether a `streaming` block is open."""
        return self._streams is not None

    def streaming(self, batch_size: int) -> ExitStack:
        """Start `batch_size` new streams immediately; leaving the returned context ends them.

        Raises `RuntimeError` when this object streams already.
        """
        if self._streams is not None:
            raise RuntimeError(f"this {type(self).__name__} is streaming already: leave the first `streaming` block")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        self._streams = Streams(
            state=self._init_state(batch_size),
            fresh=read_slot(self._init_state(1), 0, steps=0),
            exec_mask=torch.ones(batch_size, dtype=torch.bool, device=self._device),
        )
        stack = ExitStack()
        stack.callback(self._stop)
        return stack

    def streaming_forever(self, batch_size: int) -> None:
        """Start `batch_size` new streams that end with this object."""
        self.streaming(batch_size)

    def reset_streaming(self, reset_mask: Tensor | None = None) -> None:
        """Reset the streams of `reset_mask` (`[B]`, all by default) and let them advance again."""
        streams = self._started()
        mask = torch.ones_like(streams.exec_mask) if reset_mask is None else self._mask(reset_mask)
        write_slots(streams.state, mask.nonzero()[:, 0], streams.fresh)
        streams.exec_mask |= mask

    def set_exec_mask(self, exec_mask: Tensor) -> None:
        """Let only the streams of `exec_mask` (`[B]`) advance from now on; the input of the others is ignored."""
        self._started().exec_mask.copy_(self._mask(exec_mask))

    def _started(self) -> Streams:
        if self._streams is None:
            raise RuntimeError(
                f"this {type(self).__name__} is not streaming: call it inside `with ....streaming(batch_size):`"
            )
        return self._streams

    def _mask(self, mask: Tensor) -> Tensor:
        expected = (self._started().batch_size,)
        if mask.shape != expected:
            raise ValueError(f"a mask of shape {list(mask.shape)}: expected {list(expected)}, one for each stream")
        return mask.to(self._device, torch.bool)

    def _stop(self) -> None:
        self._streams = None
