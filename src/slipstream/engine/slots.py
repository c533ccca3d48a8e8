"""What sessions do to the slots of the model: reset, save, restore, copy, and steer the next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slipstream.engine.flush import CopyRow, ForceToken, Op, Prefix, SetState, SlotOp, flush_steps
from slipstream.engine.session import Session
from slipstream.model.runner import Runner, State, Steering

MAX_PREFIXES = 8
"""Prompts whose state is kept: each takes as much memory as a slot."""


@dataclass(frozen=True, slots=True)
class SessionOp:
    """An operation on the slots of a session; `saved`: the states to restore."""

    kind: Op
    session: Session
    slots: tuple[int, ...]
    saved: list[State]


class SlotOperator:
    """Runs the operations of sessions on a runner.

    Args:
        runner: The model.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.prefixes: dict[Prefix, State] = {}
        """The states after the newest prompts."""

    def run(self, ops: Sequence[SessionOp]) -> None:
        """Run the operations: resets first, then the others in their order."""
        resets: dict[tuple[float | None, int, int], list[int]] = {}
        for op in ops:
            if op.kind is SlotOp.RESET:
                resets.setdefault(op.session.prefix[:3], []).extend(op.slots)
        for kind, slots in resets.items():
            reset(self._runner, slots, *kind)
        for op in ops:
            if isinstance(op.kind, CopyRow):
                self._runner.restore(op.slots[op.kind.target], self._runner.snapshot(op.slots[op.kind.source]))
            elif isinstance(op.kind, ForceToken):
                self._runner.force([op.slots[op.kind.row]], [op.kind.token])
            elif isinstance(op.kind, SetState):
                self._runner.restore(op.slots[0], op.kind.state)
            elif op.kind is SlotOp.KEEP_PREFIX:
                if len(self.prefixes) >= MAX_PREFIXES:
                    del self.prefixes[next(iter(self.prefixes))]
                self.prefixes[op.session.prefix] = self._runner.snapshot(op.slots[0])
            elif op.kind is SlotOp.SNAPSHOT:
                steps = flush_steps(op.session.format.delay_frames)
                op.session.saved = [self._runner.savepoint(slot, steps) for slot in op.slots]
            elif op.kind is SlotOp.RESTORE:
                for slot, state in zip(op.slots, op.saved, strict=True):
                    self._runner.restore(slot, state)
                op.session.saved = []


def reset(runner: Runner, slots: Sequence[int], delay: float | None, first_frame: int, language: int) -> None:
    """Start new streams in some slots: see `Runner.reset`. A runner for tests may lack what a stream does not need."""
    changes: dict[str, Any] = {"first_frame": first_frame} if first_frame else {}
    if delay is not None:
        changes["delay"] = delay
    if language:
        changes["language"] = language
    runner.reset(slots, **changes)


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
