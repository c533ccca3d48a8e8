"""What all tasks share: rows from a sampler, and codebooks that move if the task trains a quantiser."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from slipstream.nn.mimi import SplitResidualVQ
from slipstream.train.codebooks import moving_buffers, refresh


class Sampler(Protocol):
    """Draws rows; a row depends on its number only."""

    def batch(self, first_row: int, rows: int) -> Any: ...


S = TypeVar("S", bound=Sampler)


class SampledTask(Generic[S]):
    """The parts of a `parallel.Task` that follow from its sampler, and from the quantiser that it trains, if any."""

    def __init__(self, sampler: S, quantizer: SplitResidualVQ | None = None) -> None:
        self.sampler = sampler
        self._quantizer = quantizer

    def batch(self, first_row: int, rows: int) -> Any:
        return self.sampler.batch(first_row, rows)

    def moving(self) -> list[Tensor]:
        return [] if self._quantizer is None else moving_buffers(self._quantizer)

    def after_step(self) -> None:
        if self._quantizer is not None:
            refresh(self._quantizer)
