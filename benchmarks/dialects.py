"""Clients of every dialect, written from the public protocols only: for load, fuzzing, attacks and the tests.

A dialect's entry defines how a client connects, sends audio and ends, and how it reads the words. To add one, write a
subclass of `DialectClient` and a line in `CLIENTS`.
"""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgpack
import numpy as np

from slipstream.arrays import FloatArray

Message = bytes | str


class DialectClient(ABC):
    """One connection of a client."""

    path: ClassVar[str] = ""
    """Address of the WebSocket, with its query."""
    tcp: ClassVar[str] = ""
    """Name of the dialect, if it has a TCP connection instead of a WebSocket."""
    words_path: str = ""
    """Address of the WebSocket that brings the words, if it is another one."""
    headers: ClassVar[Mapping[str, str]] = {}
    rate: ClassVar[int] = 24_000
    """Of the audio, in Hz."""

    def begin(self) -> Iterable[Message]:
        """Return the messages before the audio."""
        return ()

    @abstractmethod
    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        """Return the messages for mono audio at `rate`, full scale 1."""

    @abstractmethod
    def finish(self) -> Iterable[Message]:
        """Return the messages that end the audio."""

    @abstractmethod
    def read(self, message: Message) -> list[str]:
        """Return the final words in a message of the server, and note whether the transcript is complete."""

    done = False
    """Whether all words of the audio have been read."""


def pcm16(pcm_S: FloatArray) -> bytes:
    """Return 16-bit little-endian samples."""
    return (np.clip(pcm_S, -1, 1) * 32767).round().astype("<i2").tobytes()


class Plain(DialectClient):
    """Our own dialect."""

    path = "/v1/stream?encoding=pcm_f32le&sample_rate=24000"

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        return (pcm_S.astype("<f4").tobytes(),)

    def finish(self) -> Iterable[Message]:
        return (json.dumps({"type": "close"}),)

    def read(self, message: Message) -> list[str]:
        event = json.loads(message)
        self.done |= event["type"] == "done"
        return [event["text"]] if event["type"] == "word" else []


class Kyutai(DialectClient):
    """The dialect of Kyutai's server."""

    path = "/api/asr-streaming"

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        return (_pack(type="Audio", pcm=pcm_S.tolist()),)

    def finish(self) -> Iterable[Message]:
        return (_pack(type="Marker", id=1),)

    def read(self, message: Message) -> list[str]:
        assert isinstance(message, bytes)
        event = msgpack.unpackb(message)
        self.done |= event["type"] == "Marker"
        return [event["text"]] if event["type"] == "Word" else []


def _pack(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb(fields, use_single_float=True)
    return packed


class Wyoming(DialectClient):
    """Home Assistant's."""

    tcp = "wyoming"
    rate = 16_000
    _FORMAT: ClassVar[Mapping[str, int]] = {"rate": 16_000, "width": 2, "channels": 1}

    def __init__(self) -> None:
        self._unread = b""
        self._turn_ended = False

    def begin(self) -> Iterable[Message]:
        return (self._event("transcribe", language="en"), self._event("audio-start", **self._FORMAT))

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        return (self._event("audio-chunk", pcm16(pcm_S), **self._FORMAT),)

    def finish(self) -> Iterable[Message]:
        return (self._event("audio-stop"),)

    def read(self, message: Message) -> list[str]:
        assert isinstance(message, bytes)
        self._unread += message
        words: list[str] = []
        while b"\n" in self._unread:
            line, _, rest = self._unread.partition(b"\n")
            head = json.loads(line)
            if len(rest) < (size := head.get("data_length", 0)):
                break
            self._unread = rest[size:]
            if head["type"] == "voice-stopped":
                self._turn_ended = True
            elif head["type"] == "transcript":
                words += json.loads(rest[:size])["text"].split()
                self.done |= not self._turn_ended  # the transcript that `audio-stop` asks for
                self._turn_ended = False
        return words

    @staticmethod
    def _event(type: str, payload: bytes = b"", **data: Any) -> bytes:
        body = json.dumps(data).encode()
        head = {"type": type, "data_length": len(body), "payload_length": len(payload)}
        return json.dumps(head).encode() + b"\n" + body + payload


class Vosk(DialectClient):
    """That of vosk-server. It does not wait for the answer to each message."""

    path = "/vosk"
    rate = 16_000

    def __init__(self) -> None:
        self._expected = 0

    def begin(self) -> Iterable[Message]:
        return (json.dumps({"config": {"sample_rate": self.rate}}),)

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        self._expected += 1
        return (pcm16(pcm_S),)

    def finish(self) -> Iterable[Message]:
        self._expected += 1
        return ('{"eof" : 1}',)

    def read(self, message: Message) -> list[str]:
        answer = json.loads(message)
        self._expected -= 1
        self.done |= not self._expected
        words = answer.get("result", [])
        assert answer.get("text", "").split() == [word["word"] for word in words]
        return [word["word"] for word in words]


class Gradium(DialectClient):
    """That of Gradium, which succeeds Kyutai's."""

    path = "/api/speech/asr"

    def begin(self) -> Iterable[Message]:
        return (json.dumps({"type": "setup", "model_name": "default", "input_format": "pcm"}),)

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        return (json.dumps({"type": "audio", "audio": base64.b64encode(pcm16(pcm_S)).decode()}),)

    def finish(self) -> Iterable[Message]:
        return (json.dumps({"type": "end_of_stream"}),)

    def read(self, message: Message) -> list[str]:
        event = json.loads(message)
        self.done |= event["type"] == "end_of_stream"
        return [event["text"]] if event["type"] == "text" else []


CLIENTS: dict[str, type[DialectClient]] = {
    "plain": Plain,
    "kyutai": Kyutai,
    "wyoming": Wyoming,
    "vosk": Vosk,
    "gradium": Gradium,
}
"""The client of each dialect, by its name in the log."""
