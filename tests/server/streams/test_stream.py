"""What a dialect may ask of a stream, with a dialect made for the test."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.fakes import ScriptRunner, speech, tiny_tokenizer
from tests.server.harness import chunks, hold_after, solo, wait_for

from slipstream.connections.access import Client
from slipstream.connections.limits import Limits
from slipstream.dialects.models import Models
from slipstream.dialects.protocol import Action, Audio, Close, CloseCode, Dialect, Finish, Flush, Message, Open, Send
from slipstream.engine.engine import Engine
from slipstream.engine.options import SessionOptions
from slipstream.events import Event, Final, Flushed, Ready, Word
from slipstream.server.metrics import Metrics
from slipstream.server.streams.stream import LiveStream


class Script(Dialect):
    """Takes actions as messages: `receive` gets them from a list by their number."""

    name = "script"

    def __init__(self, *actions: Action) -> None:
        self.actions = actions

    def open(self) -> Iterable[Action]:
        return (Send("hello"),)

    def receive(self, message: Message) -> Iterator[Action]:
        yield self.actions[int(message)]

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        if isinstance(event, Word):
            yield Send(json.dumps([channel, event.text]))
        elif isinstance(event, (Ready, Flushed, Final)):
            yield Send(json.dumps([channel, type(event).__name__]))

    def error(self, message: str, code: CloseCode) -> Message | None:
        return None


class Socket:
    """Keeps what a stream sends."""

    congested = behind = gone = False
    client_code, sent_reason = 1006, ""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.end: Close | None = None

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def close(self, close: Close) -> None:
        self.end = self.end or close

    def ping(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def cut_off_later(self) -> None: ...
    def abort(self) -> None: ...


class Turns(set[Any]):
    """The streams that have more work than fits in one turn."""

    def remove(self, member: Any) -> None:
        self.discard(member)


class Loop:
    """A registry without a loop: the test delivers the events itself."""

    draining = False

    def __init__(self) -> None:
        self.turns = Turns()

    def waker(self, member: Any) -> Any:
        return lambda: None

    def join(self, member: Any) -> None: ...
    def leave(self, member: Any) -> None: ...


def stream(dialect: Dialect, engines: dict[str, Engine]) -> tuple[LiveStream, Socket, Metrics]:
    socket, metrics, registry = Socket(), Metrics(), Loop()
    made = LiveStream(
        dialect,
        socket,
        engines=Models(engines),
        registry=registry,  # type: ignore[arg-type]
        limits=Limits(),
        metrics=metrics,
        queue_seconds=0.0,
        client=Client(),
        over=lambda: None,
    )
    made.opened()
    return made, socket, metrics


def work(made: LiveStream) -> None:
    while made.work(math.inf):
        pass


def run(made: LiveStream, until: Any) -> None:
    def delivered() -> bool:
        work(made)
        made.deliver()
        return bool(until())

    wait_for(delivered)


def test_two_channels_are_two_sessions_and_the_last_one_ends_the_connection() -> None:
    first, second = speech(seed=1, words=4), speech(seed=2, words=5)
    opens = [Open(SessionOptions(), "script", 0), Open(SessionOptions(), "script", 1)]
    audio = [Audio(piece, channel) for channel, pcm in enumerate((first, second)) for piece in chunks(pcm, 7_000)]
    dialect = Script(*opens, *audio, Finish())
    with Engine(ScriptRunner(slots=2), tiny_tokenizer()) as engine:
        made, socket, _ = stream(dialect, {"script": engine})
        assert socket.sent == ["hello"]
        for number in range(len(dialect.actions)):
            made.receive(str(number))
            work(made)
        run(made, lambda: socket.end)
    words = [json.loads(message) for message in socket.sent[1:]]
    for channel, pcm in enumerate((first, second)):
        mine = [what for number, what in words if number == channel]
        assert mine == ["Ready", *(word.text for word in solo(pcm)), "Flushed", "Final"]
    assert socket.end == Close(CloseCode.NORMAL)


def test_a_flush_writes_the_words_and_the_stream_continues() -> None:
    pcm = speech(seed=3, words=4)
    dialect = Script(Open(SessionOptions(), "script"), Audio(pcm), Flush(), Audio(pcm[:1]), Finish())
    with Engine(ScriptRunner(slots=1), tiny_tokenizer()) as engine:
        made, socket, _ = stream(dialect, {"script": engine})
        for number in range(3):
            made.receive(str(number))
            work(made)
        run(made, lambda: '[0, "Flushed"]' in socket.sent)
        assert [json.loads(message)[1] for message in socket.sent[2:-1]] == [word.text for word in solo(pcm)]
        for number in (3, 4):
            made.receive(str(number))
            work(made)
        run(made, lambda: socket.end)


def test_an_event_may_ask_for_a_flush_after_the_clients_end() -> None:
    class FlushOnce(Script):
        asked = False

        def handle(self, event: Event, channel: int) -> Iterable[Action]:
            if isinstance(event, Word) and not self.asked:
                self.asked = True
                yield Flush(buffered=False)
            yield from super().handle(event, channel)

    dialect = FlushOnce(Open(SessionOptions(), "script"), Audio(speech(seed=3, words=4)), Finish())
    runner = ScriptRunner(slots=1)
    released = hold_after(runner, steps=22)
    with Engine(runner, tiny_tokenizer()) as engine:
        made, socket, _ = stream(dialect, {"script": engine})
        for number in range(3):
            made.receive(str(number))
            work(made)
        run(made, lambda: dialect.asked)
        released.set()
        run(made, lambda: socket.end)
    kinds = [json.loads(message)[1] for message in socket.sent[1:]]
    assert kinds[-1] == "Final"
    assert kinds.count("Flushed") == 2


def test_a_dialect_may_end_an_idle_connection_earlier_than_the_server() -> None:
    dialect = Script(Open(SessionOptions(), "script"))
    dialect.idle_seconds, dialect.idle_close = 10.0, Close(CloseCode.INTERNAL_ERROR, "NET-0001")
    with Engine(ScriptRunner(slots=1), tiny_tokenizer()) as engine:
        made, socket, _ = stream(dialect, {"script": engine})
        made.receive("0")
        run(made, lambda: len(socket.sent) == 2)
        made.sweep(time.monotonic() + 9)
        assert not made._connection.ended
        made.sweep(time.monotonic() + 11)
        run(made, lambda: socket.end)
    assert socket.end == dialect.idle_close


def test_a_message_selects_the_model_and_a_second_one_replaces_its_session() -> None:
    with (
        Engine(ScriptRunner(slots=1), tiny_tokenizer()) as small,
        Engine(ScriptRunner(slots=1), tiny_tokenizer()) as large,
    ):
        dialect = Script(Open(SessionOptions(), "large"), Open(SessionOptions(), "small"))
        made, socket, metrics = stream(dialect, {"small": small, "large": large})
        made.receive("0")
        run(made, lambda: len(socket.sent) == 2)
        assert (small.active, large.active) == (0, 1)
        made.receive("1")
        run(made, lambda: len(socket.sent) == 3)
        wait_for(lambda: (small.active, large.active) == (1, 0))
        assert metrics.registry.get_sample_value("asr_open_channels", {"handler": "all"}) == 1
        made.closed(None)
        wait_for(lambda: small.active == 0)


def test_a_dialect_may_close_the_connection() -> None:
    dialect = Script(Close(CloseCode.POLICY_VIOLATION, "no audio for 10 s"))
    with Engine(ScriptRunner(slots=1), tiny_tokenizer()) as engine:
        made, socket, _ = stream(dialect, {"script": engine})
        made.receive("0")
        assert socket.end == dialect.actions[0]


@pytest.mark.parametrize("action", [Finish()])
def test_the_end_of_a_connection_without_sessions_closes_it(action: Action) -> None:
    with Engine(ScriptRunner(slots=1), tiny_tokenizer()) as engine:
        made, socket, _ = stream(Script(action), {"script": engine})
        made.receive("0")
        assert socket.end == Close(CloseCode.NORMAL)


def test_a_command_without_a_session_fails_the_connection_only() -> None:
    dialect = Script(Audio(np.zeros(10, np.float32)))
    with Engine(ScriptRunner(slots=1), tiny_tokenizer()) as engine:
        made, socket, _ = stream(dialect, {"script": engine})
        made.receive("0")
        assert socket.end is not None
        assert socket.end.code is CloseCode.INTERNAL_ERROR
        assert math.isfinite(engine.step_seconds)
