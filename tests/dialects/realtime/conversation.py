"""A dialect and a session without server: a client's messages go in, the dialect's messages come out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from tests.fakes import ScriptRunner, run, tiny_tokenizer

from slipstream.arrays import FloatArray
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Action, Audio, Dialect, Flush, Marker, Message, Open, Send, SetHints, SetTurns
from slipstream.engine.options import StreamFormat
from slipstream.engine.session import Session
from slipstream.events import Event

INFO = StreamInfo("script", 0.48, 0.08)
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"


def request(*query: tuple[str, str], **headers: str) -> StreamRequest:
    models = Models({"script": INFO, "other": StreamInfo("other", 0.48, 0.08)})
    return StreamRequest(models, query, headers, "7f", 1_700_000_000, 3600.0)


def append(pcm_S: FloatArray) -> str:
    pcm = (np.clip(pcm_S, -1, 1) * 32767).round().astype("<i2").tobytes()
    return message("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())


def message(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


def update(**audio: Any) -> str:
    return message("session.update", session={"type": "transcription", "audio": {"input": audio}})


class Conversation:
    """Runs a dialect on its own session, which processes audio when `run` is called."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.runner = ScriptRunner()
        self.session: Session | None = None
        self.opened: list[Open] = []
        self.sent: list[dict[str, Any]] = []
        self._do(dialect.open())

    def send(self, *messages: Message) -> list[dict[str, Any]]:
        """Send messages, and let the session process everything after each. Returns the answers."""
        before = len(self.sent)
        for one in messages:
            self._do(self.dialect.receive(one))
            self.run()
        return self.sent[before:]

    def send_at_once(self, *messages: Message) -> list[dict[str, Any]]:
        """Send messages faster than they are processed. Returns the answers."""
        before = len(self.sent)
        for one in messages:
            self._do(self.dialect.receive(one))
        self.run()
        return self.sent[before:]

    def finish(self) -> None:
        assert self.session is not None
        self.session.finish(0.0)
        self.run()

    def run(self) -> None:
        while self.session is not None and (events := run(self.session, self.runner)):
            for event in events:
                self.handle(event)

    def handle(self, event: Event) -> None:
        self._do(self.dialect.handle(event, 0))

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                assert isinstance(action.message, str)
                self.sent.append(json.loads(action.message))
            elif isinstance(action, Open):
                self.opened.append(action)
                format = StreamFormat(tiny_tokenizer(), 1920, 12.5, self.runner.delay_frames)
                self.session = Session(format, action.options)
                self.session.admit(0)
            else:
                assert self.session is not None, "no session is open"
                if isinstance(action, Audio):
                    self.session.push(action.pcm_S)
                elif isinstance(action, Marker):
                    self.session.mark(action.id, 0.0)
                elif isinstance(action, SetHints):
                    self.session.set_hints(action.hints)
                elif isinstance(action, SetTurns):
                    self.session.set_turns(action.turns, action.low_latency)
                else:
                    assert isinstance(action, Flush)
                    self.session.flush(0.0)


def kinds(messages: Iterable[dict[str, Any]]) -> list[str]:
    return [one["type"] for one in messages]


def texts(messages: Iterable[dict[str, Any]]) -> list[str]:
    return [one["transcript"] for one in messages if one["type"] == COMPLETED]
