"""Clients of every dialect, written from the public protocols only: for load, fuzzing, attacks and the tests.

A dialect's entry defines how a client connects, sends audio and ends, and how it reads the words. To add one, write a
subclass of `DialectClient` and a line in `CLIENTS`.
"""

from __future__ import annotations

import base64
import json
import uuid
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
    encoding: ClassVar[str] = "pcm_s16le"
    """Of the audio, as the plain dialect names it."""

    def begin(self) -> Iterable[Message]:
        """Return the messages before the audio."""
        return ()

    @abstractmethod
    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        """Return the messages for mono audio at `rate`, full scale 1."""

    @staticmethod
    def coded(pcm_S: FloatArray) -> FloatArray:
        """Return audio as the server decodes it, where the client's encoding changes it."""
        return pcm_S

    @abstractmethod
    def finish(self) -> Iterable[Message]:
        """Return the messages that end the audio."""

    @abstractmethod
    def read(self, message: Message) -> list[str]:
        """Return the final words in a message of the server, and note whether the transcript is complete."""

    done = False
    """Whether all words of the audio have been read."""
    ends_by_closing: ClassVar[bool] = False
    """Whether the server closes the connection without a message that the transcript is complete."""


def pcm16(pcm_S: FloatArray) -> bytes:
    """Return 16-bit little-endian samples."""
    return (np.clip(pcm_S, -1, 1) * 32767).round().astype("<i2").tobytes()


def mulaw(pcm_S: FloatArray) -> bytes:
    """Return mu-law samples (ITU-T G.711)."""
    samples = np.frombuffer(pcm16(pcm_S), "<i2").astype(np.int32)
    magnitude = np.minimum(np.abs(samples) + 132, 32767)
    exponent = np.log2(magnitude).astype(np.int32) - 7
    encoded = (exponent << 4) | ((magnitude >> (exponent + 3)) & 15)
    return (~(encoded | np.where(samples < 0, 0x80, 0)) & 0xFF).astype(np.uint8).tobytes()


class Plain(DialectClient):
    """Our own dialect."""

    path = "/v1/stream?encoding=pcm_f32le&sample_rate=24000"
    encoding = "pcm_f32le"

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
    encoding = "pcm_f32le"

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
        self._expected, self._ended = 0, False

    def begin(self) -> Iterable[Message]:
        return (json.dumps({"config": {"sample_rate": self.rate}}),)

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        self._expected += 1
        return (pcm16(pcm_S),)

    def finish(self) -> Iterable[Message]:
        self._expected += 1
        self._ended = True
        return ('{"eof" : 1}',)

    def read(self, message: Message) -> list[str]:
        answer = json.loads(message)
        self._expected -= 1
        self.done |= self._ended and not self._expected
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


class RealtimeGa(DialectClient):
    """OpenAI's Realtime transcription in the GA format: the client commits, and detects turns itself."""

    path = "/v1/realtime?intent=transcription"

    def begin(self) -> Iterable[Message]:
        audio = {"input": {"format": {"type": "audio/pcm", "rate": 24_000}, "turn_detection": None}}
        return (_json("session.update", session={"type": "transcription", "audio": audio}),)

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        return (_json("input_audio_buffer.append", audio=base64.b64encode(pcm16(pcm_S)).decode()),)

    def finish(self) -> Iterable[Message]:
        return (_json("input_audio_buffer.commit"),)

    def read(self, message: Message) -> list[str]:
        event = json.loads(message)
        assert event["type"] != "error", event["error"]["message"]
        if event["type"] != "conversation.item.input_audio_transcription.completed":
            return []
        self.done = self._is_last(event["item_id"])
        return [word["word"] for word in event["words"]]

    def _is_last(self, item_id: str) -> bool:
        return True


class RealtimeBeta(RealtimeGa):
    """OpenAI's Realtime transcription in the beta format: the server detects turns, and the client commits the rest."""

    headers: ClassVar[Mapping[str, str]] = {"OpenAI-Beta": "realtime=v1"}

    def __init__(self) -> None:
        self._samples = 0
        self._stopped: dict[str, int] = {}

    def begin(self) -> Iterable[Message]:
        detection = {"type": "server_vad", "silence_duration_ms": 500}
        session = {"input_audio_format": "pcm16", "turn_detection": detection}
        return (_json("transcription_session.update", session=session),)

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        self._samples += len(pcm_S)
        return super().audio(pcm_S)

    def read(self, message: Message) -> list[str]:
        event = json.loads(message)
        if event["type"] == "input_audio_buffer.speech_stopped":
            self._stopped[event["item_id"]] = event["audio_end_ms"]
        return super().read(message)

    def _is_last(self, item_id: str) -> bool:
        end = 1000 * self._samples / self.rate  # an item without speech is the one of the commit
        return self._stopped.get(item_id, end) >= end - 1


class Vllm(DialectClient):
    """vLLM's protocol on OpenAI's path."""

    path = "/v1/realtime"
    rate = 16_000

    def begin(self) -> Iterable[Message]:
        return (_json("session.update", model="default"), _json("input_audio_buffer.commit"))

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        audio = base64.b64encode(pcm16(pcm_S)).decode()
        return (_json("input_audio_buffer.append", audio=audio),) if audio else ()

    def finish(self) -> Iterable[Message]:
        return (_json("input_audio_buffer.commit", final=True),)

    def read(self, message: Message) -> list[str]:
        event = json.loads(message)
        assert event["type"] != "error", event["error"]
        self.done |= event["type"] == "transcription.done"
        return list(event["text"].split()) if event["type"] == "transcription.done" else []


def _json(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


class DeepgramV1(DialectClient):
    """Deepgram's dialect `/v1/listen`."""

    path = "/v1/listen?encoding=linear32&sample_rate=24000&punctuate=true&interim_results=true"
    encoding = "pcm_f32le"

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        return (pcm_S.astype("<f4").tobytes(),)

    def finish(self) -> Iterable[Message]:
        return (json.dumps({"type": "CloseStream"}),)

    def read(self, message: Message) -> list[str]:
        event = json.loads(message)
        self.done |= event["type"] == "Metadata"
        if event["type"] != "Results" or not event["is_final"]:
            return []
        return [word["punctuated_word"] for word in event["channel"]["alternatives"][0]["words"]]


class Flux(DeepgramV1):
    """Deepgram's dialect Flux, whose final words come at the end of a turn."""

    path = "/v2/listen?encoding=linear32&sample_rate=24000&eager_eot_threshold=0.5"
    ends_by_closing = True

    def read(self, message: Message) -> list[str]:
        event = json.loads(message)
        if event.get("event") != "EndOfTurn":
            return []
        return [word["word"] for word in event["words"]]


class Twilio(DialectClient):
    """A media stream with one track; the words come by a second WebSocket."""

    path = "/v1/twilio"
    rate = 8_000
    encoding = "mulaw"

    def __init__(self) -> None:
        self._id = f"CA{uuid.uuid4().hex}"
        self.words_path = f"/v1/calls?id={self._id}"

    def begin(self) -> Iterable[Message]:
        format = {"encoding": "audio/x-mulaw", "sampleRate": self.rate, "channels": 1}
        start = {"callSid": self._id, "streamSid": "MZ1", "tracks": ["inbound"], "mediaFormat": format}
        connected = {"event": "connected", "protocol": "Call", "version": "1.0.0"}
        return (json.dumps(connected), json.dumps({"event": "start", "start": start}))

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        payload = base64.b64encode(mulaw(pcm_S)).decode()
        return (json.dumps({"event": "media", "media": {"track": "inbound", "payload": payload}}),)

    @staticmethod
    def coded(pcm_S: FloatArray) -> FloatArray:
        encoded = ~np.frombuffer(mulaw(pcm_S), np.uint8)
        magnitude = (((encoded & 15).astype(np.int32) << 3) + 132 << (encoded >> 4 & 7)) - 132
        coded_S: FloatArray = (np.where(encoded & 0x80, -magnitude, magnitude) / 32768).astype(np.float32)
        return coded_S

    def finish(self) -> Iterable[Message]:
        return (json.dumps({"event": "stop", "stop": {"callSid": self._id}}),)

    def read(self, message: Message) -> list[str]:
        event = json.loads(message)
        self.done |= event["type"] == "done"
        return [event["text"]] if event["type"] == "word" else []


class AudioSocket(DialectClient):
    """An Asterisk; the words come by a WebSocket."""

    tcp = "audiosocket"
    rate = 16_000

    def __init__(self) -> None:
        self._id = uuid.uuid4()
        self.words_path = f"/v1/calls?id={self._id}"

    def begin(self) -> Iterable[Message]:
        return (self._frame(0x01, self._id.bytes),)

    def audio(self, pcm_S: FloatArray) -> Iterable[Message]:
        data = pcm16(pcm_S)
        return [self._frame(0x12, data[start : start + 640]) for start in range(0, len(data), 640)]

    def finish(self) -> Iterable[Message]:
        return (self._frame(0x00),)

    read = Twilio.read

    @staticmethod
    def _frame(kind: int, payload: bytes = b"") -> bytes:
        return bytes([kind]) + len(payload).to_bytes(2, "big") + payload


CLIENTS: dict[str, type[DialectClient]] = {
    "plain": Plain,
    "kyutai": Kyutai,
    "audiosocket": AudioSocket,
    "twilio": Twilio,
    "wyoming": Wyoming,
    "deepgram-v1": DeepgramV1,
    "flux": Flux,
    "vosk": Vosk,
    "gradium": Gradium,
    "realtime-ga": RealtimeGa,
    "realtime-beta": RealtimeBeta,
    "vllm": Vllm,
}
"""The client of each dialect, by its name in the log."""
