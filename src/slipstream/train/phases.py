"""Phases of a run: what it reads, and at what rate it learns, by its progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slipstream.data.options import DataOptions
from slipstream.data.rows import Sampler
from slipstream.errors import ConfigError
from slipstream.train.options import PhaseOptions


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run, with its own rows."""

    options: PhaseOptions
    start: float
    draw: Callable[[int, int], Any]

    def rate(self, progress: float) -> float:
        """The factor on the scheduled learning rate; it moves from the first to the second of a pair."""
        if isinstance(self.options.rate, float):
            return self.options.rate
        first, last = self.options.rate
        share = (progress - self.start) / (self.options.until - self.start)
        return first + (last - first) * min(1.0, max(0.0, share))


class Phases:
    """The phases of a run in their order, or one for the whole run."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._phases = phases

    def at(self, progress: float) -> Phase:
        """The phase of a moment of the run."""
        return next((phase for phase in self._phases if progress < phase.options.until), self._phases[-1])


def plan(options: Sequence[PhaseOptions], sampler: Sampler, data: DataOptions) -> Phases | None:
    """The phases of a run whose rows come from `sampler`, or None for a run without phases.

    Raises `ConfigError` for datasets that are not drawn, or not there.
    """
    phases, start = [], 0.0
    for phase in options:
        changes = phase.data_changes()
        rows = sampler
        if changes:
            changed = data.model_copy(update=changes)
            if unknown := sorted((phase.crop or {}).keys() - changed.weights.keys()):
                raise ConfigError(f"phase.crop names {', '.join(unknown)}, which weights do not draw from")
            try:
                rows = sampler.changed(changed)
            except ConfigError as error:
                raise ConfigError(f"the phase until {phase.until:g}: {error}") from error
        phases.append(Phase(phase, start, rows.batch))
        start = phase.until
    return Phases(phases) if phases else None
