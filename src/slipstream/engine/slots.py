"""What sessions do to the slots of the model: reset, save, restore, copy, encode ahead, and steer the next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.model.runner import Runner, State, Steering

if TYPE_CHECKING:
    from slipstream.engine.session import Session

MAX_PREFIXES = 8
"""Prompts whose state is kept: each takes as much memory as a slot."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Start a new stream in all slots of a session: see `Runner.reset`."""

    delay: float | None = None
    first_frame: int = 0
    language: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Save the state of all slots of a session, for a `Restore` after at most this number of steps."""

    steps: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Restore the state of the last `Snapshot`."""


@dataclass(frozen=True, slots=True)
class CopyRow:
    """Continue one hypothesis of a session in a second slot. `source`, `target`: rows, which have the same audio."""

    source: int
    target: int

    @property
    def rows(self) -> tuple[int, ...]:
        return self.source, self.target


@dataclass(frozen=True, slots=True)
class ForceToken:
    """Replace the last token of a row of a session."""

    row: int
    token: int

    @property
    def rows(self) -> tuple[int, ...]:
        return (self.row,)


Prefix = tuple[Reset, tuple[int, ...]]
"""What a model starts with: its reset, and the tokens of a prompt."""


@dataclass(frozen=True, slots=True)
class KeepPrefix:
    """Keep the state of the first row of a session, which has read this prefix, for other sessions."""

    prefix: Prefix


@dataclass(frozen=True, slots=True, eq=False)
class SetState:
    """Give all rows of a session a state."""

    state: State


Op = Reset | Snapshot | Restore | CopyRow | ForceToken | KeepPrefix | SetState
"""An operation on the slots of a session before its next step."""


@dataclass(frozen=True, slots=True, eq=False)
class Encode:
    """Encode the next frames `[F, frame_samples]` of a session ahead: see `Runner.encode`."""

    pcm_FS: FloatArray


SessionOp: TypeAlias = tuple[tuple[int, ...], Op | Encode]
"""The slots of a session, and an operation on them."""


class SlotOperator:
    """Runs the operations of sessions on a runner. It keeps what they save, by the slot, until they restore it.

    Args:
        runner: The model.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.prefixes: dict[Prefix, State] = {}
        """The states after the newest prompts."""
        self._saved: dict[int, State] = {}

    def run(self, ops: Sequence[SessionOp]) -> None:
        """Run the operations: resets first, then the others in their order."""
        resets: dict[Reset, list[int]] = {}
        for slots, op in ops:
            if isinstance(op, Reset):
                resets.setdefault(op, []).extend(slots)
        for op, reset_slots in resets.items():
            self._reset(op, reset_slots)
        for slots, op in ops:
            if isinstance(op, CopyRow):
                self._runner.copy_text(slots[op.source], slots[op.target])
            elif isinstance(op, ForceToken):
                self._runner.force([slots[op.row]], [op.token])
            elif isinstance(op, SetState):
                for slot in slots:
                    self._runner.restore(slot, op.state)
            elif isinstance(op, KeepPrefix):
                if len(self.prefixes) >= MAX_PREFIXES:
                    del self.prefixes[next(iter(self.prefixes))]
                self.prefixes[op.prefix] = self._runner.snapshot(slots[0])
            elif isinstance(op, Snapshot):
                self._saved |= {slot: self._runner.savepoint(slot, op.steps) for slot in slots}
            elif isinstance(op, Encode):
                self._runner.encode(slots, op.pcm_FS)
            elif isinstance(op, Restore):
                for slot in slots:
                    self._runner.restore(slot, self._saved.pop(slot))

    def forget(self, slots: Sequence[int]) -> None:
        """Free what was saved of these slots: a session may end before it restores its state."""
        if self._saved:
            for slot in slots:
                self._saved.pop(slot, None)

    def _reset(self, op: Reset, slots: Sequence[int]) -> None:
        self.forget(slots)
        # A runner for tests may lack what a stream does not need.
        changes: dict[str, Any] = {"first_frame": op.first_frame} if op.first_frame else {}
        if op.delay is not None:
            changes["delay"] = op.delay
        if op.language:
            changes["language"] = op.language
        self._runner.reset(slots, **changes)


def steering_of(slots: int, sessions: Sequence[Session]) -> Steering | None:
    """Return the steering of a step of these sessions; None if none of them needs it."""
    if not any(session.steered for session in sessions):
        return None
    biases = [(slot, session.biases(row)) for session in sessions for row, slot in enumerate(session.slots)]
    longest = max((len(bias.id_N) for _, bias in biases), default=0)
    steering = Steering(np.zeros((slots, longest), np.int64), np.zeros((slots, longest), np.float32))
    for slot, bias in biases:
        steering.id_BN[slot, : len(bias.id_N)] = bias.id_N
        steering.bias_BN[slot, : len(bias.bias_N)] = bias.bias_N
    return steering
