"""Kyutai's wire: msgpack maps with a `type`, on a WebSocket's binary messages.

In: `Init`, `Audio {pcm}`, `OggOpus {data}`, `Marker {id}`. Out: `Ready`, `Step {step_idx, prs, buffered_pcm}`,
`Word {text, start_time}`, `EndWord {stop_time}`, `Marker {id}`, `Error {message}`. What goes out is, byte for byte,
what the Rust server writes: fields in its order, times as float64, `prs` as float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from slipstream.server.ogg import OggOpusDecoder
from slipstream.server.protocol import (
    Audio,
    CloseCode,
    Command,
    Marker,
    Message,
    ProtocolError,
    Restart,
    check_audio,
)
from slipstream.types import Event, FloatArray, MarkerReached, OpenWord, Ready, Step, Word


class KyutaiWire:
    """One connection in Kyutai's dialect."""

    droppable: tuple[type[Event], ...] = (Step,)

    def __init__(self) -> None:
        self._opus: OggOpusDecoder | None = None
        self._open: OpenWord | None = None

    def decode(self, message: Message) -> list[Command]:
        """Give the commands a message means. Raises `ProtocolError` for all that are not of the protocol."""
        if isinstance(message, str):  # which the reference ignores
            return []
        pcm_S = _float32_audio(message)
        if pcm_S is not None:
            return [Audio(check_audio(pcm_S))]
        fields = _unpack(message)
        kind = fields.get("type")
        if kind == "Audio":
            return [Audio(check_audio(_samples(fields.get("pcm"))))]
        if kind == "OggOpus":
            self._opus = self._opus or OggOpusDecoder()
            return [Audio(self._opus.push(_bytes(fields.get("data"))))]
        if kind == "Marker":
            return [*self._lagging_audio(), Marker(_int64(fields.get("id")))]
        if kind == "Init":
            self._opus = None
            return [Restart()]
        raise ProtocolError(f"unknown type {kind!r:.40}: expected Init, Audio, OggOpus or Marker")

    def encode(self, event: Event) -> bytes | None:
        """Give the message that tells an event; None for partial words, turns and what else this dialect cannot say."""
        if isinstance(event, Step):
            # Their server sends none for a model without pause heads, and their clients index into `prs`.
            return step(event.index, event.pause, event.buffered) if event.pause else None
        if isinstance(event, OpenWord):
            return self._word(event)
        if isinstance(event, Word):
            self._open = None
            return end_word(event.end)
        if isinstance(event, MarkerReached):
            return marker(event.id)
        if isinstance(event, Ready):
            self._open = None
            return ready()
        return None

    def queued(self, position: int) -> bytes:
        """Not in the reference, so sent only where a queue is configured."""
        return _pack({"type": "Queued", "position": position})

    def error(self, message: str, code: CloseCode) -> bytes:
        return error(message)

    def _word(self, opened: OpenWord) -> bytes:
        """A word; where the model went on with one that was sent already, what it added, as the reference does."""
        sent = self._open.text if self._open and self._open.start == opened.start else ""
        self._open = opened
        return word(opened.text.removeprefix(sent), opened.start)

    def _lagging_audio(self) -> list[Command]:
        return [Audio(self._opus.flush())] if self._opus else []


def ready() -> bytes:
    """The stream is fresh and is being listened to."""
    return _pack({"type": "Ready"})


def step(step_idx: int, prs: Sequence[float], buffered_pcm: int) -> bytes:
    """A frame was heard: its number in this stream, the pause probabilities, the samples that wait."""
    return b"".join((_STEP, _pack(step_idx), _PRS, _pack_single(list(prs)), _BUFFERED_PCM, _pack(buffered_pcm)))


def word(text: str, start_time: float) -> bytes:
    """A word, as soon as its text is known."""
    return _pack({"type": "Word", "text": text, "start_time": start_time})


def end_word(stop_time: float) -> bytes:
    """The end of the last word."""
    return _pack({"type": "EndWord", "stop_time": stop_time})


def marker(id: int) -> bytes:
    """All text before this marker has been sent."""
    return _pack({"type": "Marker", "id": id})


def error(message: str) -> bytes:
    """Why the connection is about to be closed."""
    return _pack({"type": "Error", "message": message})


# -------------------------------------------------------------------------------------------------------------- details

_FLOAT32 = b"\xca"
_STEP = b"\x84\xa4type\xa4Step\xa8step_idx"
_PRS = b"\xa3prs"
_BUFFERED_PCM = b"\xacbuffered_pcm"
_SINGLE = msgpack.Packer(use_single_float=True)

_AUDIO = b"\x82\xa4type\xa5Audio\xa3pcm"
_TAGGED_FLOAT = np.dtype([("tag", "u1"), ("value", ">f4")])
_ARRAY16, _ARRAY32 = 0xDC, 0xDD

_MAX_KEYS = 8  # the largest message has two
# Lists that are not read in place cost 0.1 us an element, in which every other stream waits.
_MAX_SAMPLES = 480_000
_MAX_LISTED_BYTES = 65_536


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _pack_single(values: list[float]) -> bytes:
    packed: bytes = _SINGLE.pack(values)
    return packed


def _float32_audio(data: bytes) -> FloatArray | None:
    """The samples of an `Audio` message as Kyutai's clients write it, or None for any other.

    Reads the array of float32 in place: 4 us for a frame, where unpacking makes 1920 Python floats in 110 us.
    """
    if not data.startswith(_AUDIO) or len(data) < len(_AUDIO) + 1:
        return None
    size = {_ARRAY16: 2, _ARRAY32: 4}.get(data[len(_AUDIO)])
    if size is None:
        return None
    start = len(_AUDIO) + 1 + size
    length = int.from_bytes(data[len(_AUDIO) + 1 : start], "big")
    # As bytes, since a comparison of numpy's costs four times as much.
    if len(data) != start + 5 * length or data[start::5] != _FLOAT32 * length:
        return None
    return np.frombuffer(data, _TAGGED_FLOAT, offset=start)["value"].astype(np.float32)


def _unpack(data: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(data, max_array_len=_MAX_SAMPLES, max_map_len=_MAX_KEYS, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a msgpack message: {str(error) or type(error).__name__}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"a message is a msgpack map with a type, not {type(message).__name__}")
    return message


def _samples(pcm: Any) -> FloatArray:
    if isinstance(pcm, bytes):
        if len(pcm) % 4:
            raise ProtocolError(f"binary pcm is float32, 4 bytes a sample: {len(pcm)} bytes do not divide")
        return np.frombuffer(pcm, "<f4").astype(np.float32)
    if not isinstance(pcm, list):
        raise ProtocolError(f"pcm is a list of floats or binary float32, not {type(pcm).__name__}")
    if not all(type(sample) in (float, int) for sample in pcm):
        raise ProtocolError("pcm holds something that is not a number")
    # An integer beyond float64 cannot come out of msgpack, one beyond float32 becomes infinite: no audio either.
    with np.errstate(over="ignore"):
        return np.array(pcm, np.float64).astype(np.float32)


def _bytes(data: Any) -> bytes:
    """`data` as binary, or as the list of bytes that the reference's own clients write."""
    if isinstance(data, bytes):
        return data
    if not isinstance(data, list) or len(data) > _MAX_LISTED_BYTES:
        raise ProtocolError(f"data is binary, or a list of at most {_MAX_LISTED_BYTES} bytes")
    if not all(type(byte) is int and 0 <= byte <= 255 for byte in data):
        raise ProtocolError("data holds something that is not a byte")
    return bytes(data)


def _int64(id: Any) -> int:
    if type(id) is not int or not -(2**63) <= id < 2**63:
        raise ProtocolError(f"a marker's id is an integer of 64 bits, not {id!r:.40}")
    return id
