"""What is saved of a slot is freed with the session."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable

import pytest
from tests.engine.remote.harness import hosting, wait_for
from tests.fakes import ScriptRunner, silence, sound_of, tiny_tokenizer

from slipstream.arrays import BoolArray, FloatArray
from slipstream.engine.engine import Engine
from slipstream.engine.live import AnyEngine
from slipstream.model.runner import StepOutput


class SavingRunner(ScriptRunner):
    """Keeps weak references to what it has saved. Calls `interrupt` in the next step after that."""

    def __init__(self) -> None:
        super().__init__(slots=2)
        self.saved: list[weakref.ref[SavedState]] = []
        self.interrupt: Callable[[], None] | None = None

    def savepoint(self, slot: int, steps: int) -> SavedState:
        state = SavedState()
        self.saved.append(weakref.ref(state))
        return state

    def launch(self, pcm_BS: FloatArray, active_B: BoolArray) -> Callable[[], StepOutput]:
        if self.saved and self.interrupt is not None:
            self.interrupt()
            self.interrupt = None
        return super().launch(pcm_BS, active_B)


class SavedState:
    """A state that can have weak references."""


@pytest.mark.parametrize("remote", [False, True], ids=["same process", "other process"])
def test_a_session_that_ends_within_a_flush_leaves_no_saved_state(remote: bool) -> None:
    runner = SavingRunner()
    with contextlib.ExitStack() as exits:
        engine: AnyEngine
        if remote:
            engine = exits.enter_context(exits.enter_context(hosting(runner)).worker())
        else:
            engine = exits.enter_context(Engine(runner, tiny_tokenizer()))
        other = exits.enter_context(engine.open())
        wait_for(lambda: engine.active == 1)
        ending = engine.open()
        wait_for(lambda: engine.active == 2)
        runner.interrupt = ending.cancel
        ending.send(sound_of("fox", frames=3))
        ending.flush()
        wait_for(lambda: engine.active == 1)
        other.send(silence(2))  # the other slot is not used again
        wait_for(lambda: runner.saved and runner.saved[0]() is None)
