"""The side of the sessions: an engine in another process, or several, with the interface of `Engine`."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from slipstream.engine.live import LiveSession, check_width
from slipstream.engine.options import SessionOptions, StreamFormat
from slipstream.engine.port import Mailbox
from slipstream.engine.remote.channel import URGENT, Channel, EncodeAhead, Kind, Refusal, pack_operation
from slipstream.engine.remote.memory import FRAMES, SharedMemory, Stat
from slipstream.engine.scheduler import MARKER_WAIT_SECONDS
from slipstream.engine.session import Session
from slipstream.engine.sessions import OpenSessions
from slipstream.engine.slots import KeepPrefix, SetState
from slipstream.engine.waiting import describe_shortage
from slipstream.errors import EngineError, Overloaded

MOST_IN_MODEL = 2
"""Frames of a session that may be on their way: the one that the model computes, and the next."""


@dataclass(eq=False)
class Device:
    """One engine: the channel to its process, and its memory.

    Args:
        channel: The channel to its process.
        memory: What it shares.
        slots: Its slots.
    """

    channel: Channel
    memory: SharedMemory
    slots: int
    sessions: dict[int, _Remote] = field(default_factory=dict, init=False)  # by the first slot
    frames: list[int] = field(default_factory=list, init=False)  # for the next message
    read_B: list[int] = field(init=False)  # outputs taken of each slot
    max_ahead: int = field(init=False)  # the most frames that the engine encodes ahead in one call

    def __post_init__(self) -> None:
        self.max_ahead = int(self.memory.stats[Stat.MAX_AHEAD])
        self.read_B = [0] * self.slots

    @property
    def free(self) -> int:
        """Slots that nobody uses."""
        return self.slots - int(self.memory.stats[Stat.ACTIVE])

    def put(self, kind: Kind, payload: bytes) -> None:
        """Send a message after the frames before it."""
        self._put_frames()
        self.channel.put(kind, payload)

    def flush(self) -> None:
        """Send all messages so far."""
        self._put_frames()
        self.channel.flush()

    def _put_frames(self) -> None:
        if self.frames:
            self.channel.put(Kind.FRAMES, np.array(self.frames, np.uint32).tobytes())
            self.frames.clear()


@dataclass(eq=False)
class _Remote:
    """One session: where it has a slot or waits for one.

    `devices`: engines with enough slots for it. `untried`: those that it has not asked yet. `asked`: those that may
    still admit it, with its place in the queue. `free`: the free slots of those that have refused it.
    """

    number: int
    mailbox: Mailbox
    wait: float
    devices: list[Device]
    untried: list[Device]
    asked: dict[Device, int] = field(default_factory=dict)
    free: dict[Device, int] = field(default_factory=dict)
    queued: bool = False
    device: Device | None = None
    written: int = 0
    on_their_way: int = 0


class RemoteEngine(OpenSessions):
    """Runs sessions of this process on engines in others.

    The owner calls `receive` when a channel is readable and `tick` every few milliseconds. A new session goes to the
    engine with the most free slots; if all are full, it waits at all of them. Only the first of the largest
    keeps slots for sessions that need several (see `WaitingSessions`), so that others always have the rest of the
    engines. When an engine's process ends, every session ends with `EngineError`.

    Args:
        format: What the sessions have in common.
        devices: The engines.
        later: Calls a function soon, once, in the thread of the owner: what several sessions have to send until then
            goes into one message. None sends immediately.
    """

    def __init__(
        self,
        format: StreamFormat,
        devices: Sequence[Device],
        later: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        super().__init__()
        self.format = format
        self.devices = list(devices)
        self.slots = sum(device.slots for device in devices)
        # The same in every worker: otherwise two wide sessions could keep slots of different engines from all others.
        self._keeper = max(self.devices, key=lambda device: device.slots)
        self.failure: BaseException | None = None
        """Why the engine has stopped."""
        self._later = later
        self._flush_is_due = False
        self._remotes: dict[Session, _Remote] = {}
        self._numbers: dict[int, _Remote] = {}
        self._count = 0
        self._markers: dict[Session, float] = {}

    @property
    def active(self) -> int:
        """Slots of all processes in use."""
        return sum(int(device.memory.stats[Stat.ACTIVE]) for device in self.devices)

    @property
    def waiting(self) -> int:
        """Sessions of all processes that wait for a slot; each waits at every engine."""
        return max(int(device.memory.stats[Stat.WAITING]) for device in self.devices)

    @property
    def alive(self) -> bool:
        """Whether the engines run."""
        return self.failure is None

    @property
    def step_seconds(self) -> float:
        """How long the longest step in progress has taken so far; 0 between steps."""
        began = [float(device.memory.stats[Stat.STEP_BEGAN]) for device in self.devices]
        return max(time.monotonic() - one if one else 0.0 for one in began)

    def open(
        self,
        options: SessionOptions | None = None,
        *,
        wait: float = 0.0,
        wake: Callable[[], None] | None = None,
    ) -> LiveSession:
        """Open a session; see `Engine.open`. All its slots are of one engine. Where none is free, it ends with
        `Overloaded`.

        Raises:
            ConfigError: The model does not have the delay, or no engine has the slots, that the hints require.
            EngineError: The engine has failed.
        """
        options = options or SessionOptions()
        check_width(options.hints.width, self.width_for(1))
        mailbox = Mailbox(Session(self.format.with_delay(options.hints.delay), options), wake)
        with self:
            if self.failure is not None:
                raise _engine_error(self.failure)
            self._count += 1
            wide_enough = [device for device in self.devices if device.slots >= mailbox.session.width]
            emptiest_first = sorted(wide_enough, key=lambda device: -device.free)
            remote = _Remote(self._count, mailbox, wait, emptiest_first, list(emptiest_first))
            self._remotes[mailbox.session] = self._numbers[remote.number] = remote
            self._ask(remote)
        return LiveSession(self, mailbox)

    def width_for(self, sessions: int) -> int:
        """See `AnyEngine.width_for`. The slots of a session are those of one engine."""
        widest = max(device.slots for device in self.devices)
        fits = (
            width for width in range(widest, 0, -1) if sum(device.slots // width for device in self.devices) >= sessions
        )
        return next(fits, 0)

    def position(self, session: Session) -> int:
        """See `OpenSessions.position`."""
        remote = self._remotes.get(session)
        if remote is None or remote.device is not None:
            return 0
        return min((place for place in remote.asked.values() if place), default=0)

    # ---------------------------------------------------------------------------------------- called by the owner

    def receive(self) -> None:
        """Take the messages that have arrived: all outputs of a step under one lock."""
        with self:
            for device in self.devices:
                for kind, payload in device.channel.receive():
                    self._take(device, kind, payload)
                if device.channel.closed and self.failure is None:
                    self.fail(EngineError("the process of the engine has ended"))

    def tick(self, now: float) -> None:
        """Do what is due at this time of `time.monotonic`."""
        if self._markers or self._abandoned or any(device.channel.unsent for device in self.devices):
            with self:
                self.end_abandoned()
                for session in [session for session, when in self._markers.items() if when <= now]:
                    session.flush_for_markers(now)
                    self.update(session)
                self._flush_soon()

    def flush(self) -> None:
        """Send all messages so far."""
        with self._lock:
            self._flush_is_due = False
            for device in self.devices:
                device.flush()

    def fail(self, failure: BaseException) -> None:
        """End all sessions, and refuse new ones."""
        with self:
            self.failure = failure
            for session in list(self._remotes):
                self.remove(session, _engine_error(failure))

    def close(self) -> None:
        """Close the channels: this process gives up all its slots."""
        for device in self.devices:
            device.channel.close()

    # -------------------------------------------------------------------------------------------- only within `with`

    def _take(self, device: Device, kind: Kind, payload: bytes) -> None:
        if kind is Kind.DONE:
            self._advance(device, np.frombuffer(payload, np.uint32).tolist())
        elif kind is Kind.ADMITTED:
            number, *slots = np.frombuffer(payload, np.uint32).tolist()
            self._admit(device, number, slots)
        elif kind is Kind.REFUSED:
            number, refusal, waiting, free = struct.unpack("<IIII", payload)
            if (remote := self._numbers.get(number)) is not None:
                remote.free[device] = free
                self._refuse(remote, device, Refusal(refusal), waiting)
        elif kind is Kind.POSITIONS:
            pairs = np.frombuffer(payload, np.uint32).tolist()
            for number, place in zip(pairs[::2], pairs[1::2], strict=True):
                if (remote := self._numbers.get(number)) is not None and device in remote.asked:
                    remote.asked[device] = place

    def _advance(self, device: Device, slots: list[int]) -> None:
        """Pass the outputs of a step to their sessions."""
        read_B, memory = device.read_B, device.memory
        places = [read_B[slot] % FRAMES for slot in slots]
        heads = int(memory.stats[Stat.PAUSE_HEADS])
        tokens = memory.token_BF[slots, places].tolist()
        logprobs = memory.logprob_BF[slots, places].tolist()
        pauses = memory.pause_BFH[slots, places, :heads].tolist()
        steered = memory.biases_BF[slots, places].tolist()
        now = time.monotonic()
        outputs = zip(slots, places, tokens, logprobs, pauses, steered, strict=True)
        for slot, place, token, logprob, pause_H, has_choices in outputs:
            read_B[slot] += 1
            if (remote := device.sessions.get(slot)) is None:  # another slot of a session, or it has closed meanwhile
                continue
            remote.on_their_way -= 1
            session = remote.mailbox.session
            output = token, logprob, pause_H
            if (lead := session.lead) is not None and lead != slot:
                output = memory.output(lead, place)
            try:
                session.advance(*output, now, memory.choices(session.slots, place) if has_choices else ())
            except Exception as error:  # a defect in one session must not end the others
                self.remove(session, error)
            else:
                self.update(session)

    def _ask(self, remote: _Remote) -> None:
        """Ask the next engine for a slot; once all are full, wait at all of them, or end the session."""
        if remote.untried:
            devices, wait = [remote.untried.pop(0)], 0.0 if len(self.devices) > 1 else remote.wait
            remote.queued = wait > 0
        else:
            devices, wait, remote.queued = remote.devices, remote.wait, True
        width = remote.mailbox.session.width
        for device in devices:
            remote.asked[device] = 0
            device.put(Kind.OPEN, struct.pack("<IId?", remote.number, width, wait, device is self._keeper))
        self._flush_soon()

    def _admit(self, device: Device, number: int, slots: list[int]) -> None:
        for slot in slots:
            device.read_B[slot] = 0
        remote = self._numbers.get(number)
        if remote is None or remote.device is not None:  # it has closed meanwhile, or another engine was faster
            self._leave(device, number)
            return
        for other in remote.asked:
            if other is not device:
                self._leave(other, number)
        remote.asked.clear()
        remote.device = device
        device.sessions[slots[0]] = remote
        remote.mailbox.session.admit(*slots)
        self.update(remote.mailbox.session)

    def _refuse(self, remote: _Remote, device: Device, refusal: Refusal, waiting: int) -> None:
        remote.asked.pop(device, None)
        width = remote.mailbox.session.width
        # Elsewhere, any number of narrower sessions could pass one that needs several slots.
        unkept = width > 1 and device is self._keeper and refusal is Refusal.QUEUE_FULL
        if remote.device is not None or (remote.asked and not unkept):
            return
        if remote.untried or (remote.wait > 0 and not remote.queued):
            self._ask(remote)
            return
        devices = [(free, device.slots) for device, free in remote.free.items()]
        full = describe_shortage(width, devices)
        if refusal is Refusal.QUEUE_FULL:
            full = f"{full}; {waiting} sessions wait already"
        elif refusal is Refusal.TIMED_OUT:
            full = f"timed out waiting for a free slot: {full}"
        self.remove(remote.mailbox.session, Overloaded(full))

    def _mailbox_of(self, session: Session) -> Mailbox | None:
        remote = self._remotes.get(session)
        return None if remote is None else remote.mailbox

    def _schedule(self, session: Session) -> None:
        """Send the frames of a session."""
        remote = self._remotes[session]
        if remote.device is not None:
            self._send(remote, remote.device)
            self._markers.pop(session, None)
            if session.awaits_marker and not session.ready:
                self._markers[session] = time.monotonic() + MARKER_WAIT_SECONDS

    def _send(self, remote: _Remote, device: Device) -> None:
        session, memory = remote.mailbox.session, device.memory
        slot, *others = session.slots
        while session.ready and session.in_model < MOST_IN_MODEL and remote.on_their_way < FRAMES:
            urgent = URGENT if session.urgent else 0
            if session.has_ops:
                for operation in session.take_ops():
                    if not isinstance(operation, KeepPrefix):  # each prompt is read again
                        assert not isinstance(operation, SetState), "a session has no state of another one"
                        device.put(Kind.OPERATION, pack_operation(slot, operation))
            if urgent and device.max_ahead:
                self._encode_ahead(remote, device)
            place = remote.written % FRAMES
            for row, each in enumerate(session.slots):
                memory.steer(each, place, session.biases(row) if session.steered else None)
            session.fill(memory.pcm_BFS[slot, place])
            for other in others:
                memory.pcm_BFS[other, place] = memory.pcm_BFS[slot, place]
            remote.written += 1
            remote.on_their_way += 1
            device.frames += [each + urgent for each in session.slots]
            self._flush_soon()

    def _encode_ahead(self, remote: _Remote, device: Device) -> None:
        """Have the engine encode the next frames of a session together, if they are certain."""
        session = remote.mailbox.session
        if remote.on_their_way > session.in_model:  # a block from before a restart may still be read
            return
        if (pcm_FS := session.encode_ahead(device.max_ahead)) is not None:
            device.memory.ahead_BAS[session.slots[0], : len(pcm_FS)] = pcm_FS
            device.put(Kind.OPERATION, pack_operation(session.slots[0], EncodeAhead(len(pcm_FS))))

    def remove(self, session: Session, error: BaseException | None) -> None:
        """See `OpenSessions.remove`."""
        if (remote := self._remotes.pop(session, None)) is None:
            return
        del self._numbers[remote.number]
        self._markers.pop(session, None)
        if remote.device is not None and session.slot is not None:
            del remote.device.sessions[session.slot]
            self._leave(remote.device, remote.number)
        for device in remote.asked:
            self._leave(device, remote.number)
        session.release()
        self._deliver(remote.mailbox, error)

    def _leave(self, device: Device, number: int) -> None:
        device.put(Kind.CLOSE, struct.pack("<I", number))
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._later is None:
            self.flush()
        elif not self._flush_is_due:
            self._flush_is_due = True
            self._later(self.flush)


def _engine_error(cause: BaseException) -> EngineError:
    error = EngineError(f"the engine has stopped: {cause}")
    error.__cause__ = cause
    return error
