"""The side of the engine's process: it runs the model for sessions in other processes."""

from __future__ import annotations

import logging
import math
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from slipstream.arrays import IntArray
from slipstream.engine.engine import MAX_SESSIONS_AHEAD, StepReport
from slipstream.engine.remote.channel import URGENT, Channel, EncodeAhead, Kind, Refusal, unpack_operation
from slipstream.engine.remote.memory import AHEAD_FRAMES, MAX_PAUSE_HEADS, Shape, SharedMemory, Stat
from slipstream.engine.remote.slots import Slots
from slipstream.engine.slots import CopyRow, Encode, ForceToken, Reset, SessionOp, SlotOperator
from slipstream.engine.waiting import WaitingSessions
from slipstream.errors import ConfigError, EngineError
from slipstream.model.runner import BaseRunner, Runner

GATHER_SECONDS = 0.001
"""How long frames gather that are not due yet, before their messages are read: each message would wake the engine."""
UNSENT_SECONDS = 0.005
"""How soon a full socket is tried again."""

_Client: TypeAlias = tuple[int, int]  # the number of a channel, and its session's number

logger = logging.getLogger(__name__)


class EngineHost:
    """Runs the model in one thread, which calls `run`. Per step it handles arrays, not sessions.

    A channel that closes frees the slots of its sessions immediately.

    Args:
        runner: The model.
        memory: Descriptor of the shared memory, of the runner's `Shape`.
        max_waiting: Sessions that may wait for a slot.
        observer: Called with a report of each step: it must be fast and must not raise.
    """

    def __init__(
        self,
        runner: Runner,
        memory: int,
        *,
        max_waiting: int = 64,
        observer: Callable[[StepReport], None] | None = None,
    ) -> None:
        self._runner, self._observer, self._max_waiting = runner, observer, max_waiting
        self._memory = SharedMemory(memory, Shape(runner.slots, runner.frame_samples))
        self._max_ahead = min(runner.max_ahead, AHEAD_FRAMES)
        self._memory.stats[Stat.MAX_AHEAD] = self._max_ahead
        self._pcm_BS = np.zeros((runner.slots, runner.frame_samples), np.float32)
        self._slots = Slots(runner.slots)
        self._operator = SlotOperator(runner)
        self._channels: dict[int, Channel] = {}
        self._count = 0
        self._sessions: dict[_Client, int] = {}  # the first slot of each
        self._waiting = WaitingSessions[_Client]()
        self._new: deque[socket.socket] = deque()  # attached, and not served yet
        self._selector = selectors.DefaultSelector()
        self._wakes, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._stopping = False
        self._lock = threading.Lock()  # other threads use `_wakes`, and `run` closes it
        self._ended = False

    def attach(self, end: socket.socket) -> None:
        """Serve the process at the other end of a socket pair; close it if `run` has ended. Callable in any thread."""
        self._new.append(end)
        self._wake()

    def stop(self) -> None:
        """Let `run` return after the current step; nothing after its end. Callable in any thread."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            if self._ended:
                self._close_new()
            else:
                self._wakes.send(b"\0")

    def run(self) -> None:
        """Run the model until `stop`. Raises what a step raises; the channels are closed then, too."""
        try:
            while not self._stopping:
                now = time.monotonic()
                delay = self._slots.delay(now)
                if delay == 0.0:
                    self._step(now)
                elif delay is not None and delay > GATHER_SECONDS and self._slots.patient(now):
                    time.sleep(GATHER_SECONDS)
                    delay -= GATHER_SECONDS
                self._receive(0.0 if delay == 0.0 else self._rest(delay, now))
        finally:
            for channel in self._channels.values():
                channel.flush()
                channel.close()
            self._selector.close()
            with self._lock:
                self._ended = True
                self._wakes.close()
                self._woken.close()
                self._close_new()

    def _close_new(self) -> None:
        while self._new:
            self._new.popleft().close()

    # -------------------------------------------------------------------------------------------------------- steps

    def _step(self, now: float) -> None:
        slots_N, places_N, operations, lag = self._slots.take(now)
        memory = self._memory
        memory.stats[Stat.STEP_BEGAN] = now
        sessions = sum(slot in self._slots.rows for slot in slots_N.tolist())
        ops: list[SessionOp] = []
        for slots, operation in operations:
            if not isinstance(operation, EncodeAhead):
                ops.append((slots, operation))
            elif sessions <= MAX_SESSIONS_AHEAD:  # otherwise their steps encode them
                ops.append((slots, Encode(memory.ahead_BAS[slots[0], : operation.frames])))
        self._operator.run(ops)
        for slot, place in zip(slots_N.tolist(), places_N.tolist(), strict=True):
            self._pcm_BS[slot] = memory.pcm_BFS[slot, place]
        active_B = np.zeros(self._slots.number, np.bool_)
        active_B[slots_N] = True
        steering = memory.steering(slots_N, places_N)
        output = self._runner.launch(self._pcm_BS, active_B, *([] if steering is None else [steering]))()
        seconds = time.monotonic() - now
        heads = output.pause_BH.shape[1]
        if heads > MAX_PAUSE_HEADS:
            raise EngineError(f"the model has {heads} pause heads; worker processes pass on at most {MAX_PAUSE_HEADS}")
        memory.stats[Stat.PAUSE_HEADS] = heads
        memory.token_BF[slots_N, places_N] = output.token_B[slots_N]
        memory.logprob_BF[slots_N, places_N] = output.logprob_B[slots_N]
        memory.pause_BFH[slots_N, places_N, :heads] = output.pause_BH[slots_N]
        if output.candidates is not None:
            memory.write_candidates(slots_N, places_N, output.candidates)
        memory.stats[Stat.STEP_BEGAN] = 0.0
        self._send_done(slots_N)
        self._slots.finish(time.monotonic())
        if self._observer is not None:
            self._observer(StepReport(seconds, lag, sessions, self._slots.number))

    def _send_done(self, slots_N: IntArray) -> None:
        owners_N = self._slots.owner_B[slots_N]
        for number in np.unique(owners_N).tolist():
            channel = self._channels[number]
            channel.put(Kind.DONE, slots_N[owners_N == number].astype(np.uint32).tobytes())
            channel.flush()

    # ----------------------------------------------------------------------------------------------------- messages

    def _rest(self, delay: float | None, now: float) -> float | None:
        """Return how long to wait for messages."""
        until = self._waiting.end - now
        if any(channel.unsent for channel in self._channels.values()):
            until = min(until, UNSENT_SECONDS)
        if delay is not None:
            until = min(until, delay)
        return None if until == math.inf else max(0.0, until)

    def _receive(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                self._woken.recv(4096)
                self._attach_new()
            else:
                self._read(key.data)
        now = time.monotonic()
        if late := self._waiting.late(now):
            for client in late:
                self._waiting.remove(client)
                self._refuse(client, Refusal.TIMED_OUT)
            self._admit_waiting()
        for channel in self._channels.values():
            if channel.unsent:
                channel.flush()

    def _attach_new(self) -> None:
        while self._new:
            channel = Channel(self._new.popleft())
            self._channels[self._count] = channel
            self._selector.register(channel, selectors.EVENT_READ, self._count)
            self._count += 1

    def _read(self, number: int) -> None:
        channel = self._channels[number]
        try:
            for kind, payload in channel.receive():
                self._take(number, kind, payload)
        # A defect there must not end the other streams.
        except (ValueError, IndexError, KeyError, TypeError, ConfigError, struct.error):
            logger.exception("invalid message of a worker process: its streams end")
            channel.closed = True
        if channel.closed:
            self._drop(number)

    def _take(self, number: int, kind: Kind, payload: bytes) -> None:
        if kind is Kind.FRAMES:
            numbers_N = np.frombuffer(payload, np.uint32)
            slots_N = (numbers_N & (URGENT - 1)).astype(np.int64)
            if not (self._slots.owner_B[slots_N] == number).all():
                raise ValueError(f"frames for slots of others: {slots_N.tolist()}")
            self._slots.add(slots_N, numbers_N >= URGENT, time.monotonic())
        elif kind is Kind.OPERATION:
            slot, operation = unpack_operation(payload)
            if self._slots.owner_B[slot] != number:
                raise ValueError(f"an operation on slot {slot} of another")
            # A step that fails would end all sessions.
            width = len(self._slots.rows[slot])
            if isinstance(operation, CopyRow | ForceToken) and max(operation.rows) >= width:
                raise ValueError(f"{operation} in a session of {width} rows")
            if isinstance(operation, EncodeAhead) and not 0 < operation.frames <= self._max_ahead:
                raise ValueError(f"{operation} of an engine that encodes at most {self._max_ahead} ahead")
            if isinstance(operation, Reset):
                if operation.delay is not None:
                    self._runner.delay_frames_of(operation.delay)
                if operation.language and isinstance(self._runner, BaseRunner):
                    self._runner.check_language(operation.language)
            self._slots.operate(slot, operation)
        elif kind is Kind.OPEN:
            session, width, wait, keeps = struct.unpack("<IId?", payload)
            if not 0 < width <= self._slots.number:
                raise ValueError(f"a session of {width} slots, of {self._slots.number}")
            self._open((number, session), width, wait, keeps)
        elif kind is Kind.CLOSE:
            self._close((number, *struct.unpack("<I", payload)))
        else:
            raise ValueError(f"unexpected message {kind.name}")

    # ---------------------------------------------------------------------------------------------------- admission

    def _open(self, client: _Client, width: int, wait: float, keeps: bool) -> None:
        if self._waiting.admits(width, self._slots.free):
            self._admit(client, width)
        elif wait <= 0:
            self._refuse(client, Refusal.FULL)
        elif len(self._waiting) >= self._max_waiting:
            self._refuse(client, Refusal.QUEUE_FULL)
        else:
            self._waiting.add(client, width, time.monotonic() + wait, keeps)
            self._queue_changed()

    def _close(self, client: _Client) -> None:
        if self._waiting.remove(client):
            self._admit_waiting()
        elif (first := self._sessions.pop(client, None)) is not None:
            self._operator.forget(self._slots.rows[first])
            self._slots.release(first)
            if self._waiting:
                self._admit_waiting()
            self._memory.stats[Stat.ACTIVE] = self._slots.active

    def _admit_waiting(self) -> None:
        """Give slots to the sessions that are next."""
        while (following := self._waiting.next(self._slots.free)) is not None:
            self._admit(*following)
        self._queue_changed()

    def _admit(self, client: _Client, width: int) -> None:
        slots = self._slots.admit(client[0], width)
        self._sessions[client] = slots[0]
        self._put(client, Kind.ADMITTED, np.array([client[1], *slots], np.uint32).tobytes())
        self._memory.stats[Stat.ACTIVE] = self._slots.active

    def _refuse(self, client: _Client, refusal: Refusal) -> None:
        numbers = client[1], refusal, len(self._waiting), self._slots.free
        self._put(client, Kind.REFUSED, struct.pack("<IIII", *numbers))

    def _queue_changed(self) -> None:
        self._memory.stats[Stat.WAITING] = len(self._waiting)
        places: dict[int, list[int]] = {}
        for place, (number, session) in enumerate(self._waiting, start=1):
            places.setdefault(number, []).extend((session, place))
        for number, pairs in places.items():
            self._put((number, 0), Kind.POSITIONS, np.array(pairs, np.uint32).tobytes())

    def _put(self, client: _Client, kind: Kind, payload: bytes) -> None:
        self._channels[client[0]].put(kind, payload)

    def _drop(self, number: int) -> None:
        """Free all that the sessions of a channel hold."""
        channel = self._channels[number]
        self._selector.unregister(channel)
        for client in [client for client in (*self._waiting, *self._sessions) if client[0] == number]:
            self._close(client)
        del self._channels[number]
        channel.close()
