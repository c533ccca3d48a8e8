"""Parse Kyutai's messages in place: only known keys are unpacked, and long values piece by piece.

Unpacking a whole message makes a Python object of each element, and blocks all other streams meanwhile: 4 MiB of small
integers take 0.2 s and 30 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgpack
import numpy as np

from slipstream.arrays import FloatArray
from slipstream.dialects.protocol import PIECE_SAMPLES, ProtocolError


@dataclass(frozen=True, slots=True)
class Binary:
    """A binary value: `data[start:end]`."""

    data: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Listed:
    """An array of `count` elements that begins at `start` and must fill `data` up to `end`."""

    data: bytes
    count: int
    start: int
    end: int


def parse(data: bytes, keys: dict[str, str | None]) -> tuple[str, Any]:
    """Read a message: a map of a `type` and at most one other key.

    Args:
        data: The message.
        keys: The other key of each type, or None for a type without one.

    Returns:
        The type, and the value of the other key: a `Binary`, a `Listed`, a scalar, or None where it is missing.

    Raises:
        ProtocolError: The message is not such a map.
    """
    if data.startswith(_AUDIO):  # as Kyutai's clients write it
        value, stop = _value(data, len(_AUDIO), len(data))
        if stop != len(data):
            raise ProtocolError("not a msgpack message: more follows its last value")
        return "Audio", value
    count, end = data[0] - _FIXMAP if data else -1, len(data)
    if not 0 <= count <= 2:
        raise ProtocolError("not a msgpack message: expected a map of type and at most one other key")
    fields: dict[str, Any] = {}
    position = 1
    # A client that sorts its keys writes `pcm` before `type`: the bytes after the long value are then known.
    tail = next((tail for tail in _TAILS if data.endswith(tail)), b"") if not data.startswith(_TYPE, 1) else b""
    for _ in range(count):
        key, position = _scalar(data, position, end)
        if key not in _KEYS:
            raise ProtocolError(f"unknown key {key!r:.40}: expected type, pcm, data or id")
        read, stop = (_value, end - len(tail)) if key in ("pcm", "data") else (_scalar, end)
        fields[key], position = read(data, position, stop)
    if position != end:
        raise ProtocolError("not a msgpack message: more follows its last value")
    kind = fields.pop("type", None)
    if not isinstance(kind, str) or kind not in keys:
        raise ProtocolError(f"unknown type {kind!r:.40}: expected {', '.join(keys)}")
    if unknown := set(fields) - {keys[kind]}:
        raise ProtocolError(f"{kind} has no key {unknown.pop()!r}")
    return kind, fields.get(keys[kind] or "")


def samples(pcm: Any) -> Iterator[FloatArray]:
    """Yield the samples of `pcm` in pieces `[S]`. Raises `ProtocolError` for other values than numbers."""
    if isinstance(pcm, Binary):
        if (pcm.end - pcm.start) % 4:
            raise ProtocolError(f"binary pcm is float32, 4 bytes a sample: {pcm.end - pcm.start} bytes do not divide")
        for start in range(pcm.start, pcm.end, 4 * PIECE_SAMPLES):
            size = min(4 * PIECE_SAMPLES, pcm.end - start) // 4
            yield np.frombuffer(pcm.data, "<f4", size, start).astype(np.float32)
        return
    if not isinstance(pcm, Listed):
        raise ProtocolError(f"pcm is a list of floats or binary float32, not {type(pcm).__name__}")
    position, left = pcm.start, pcm.count
    while left:
        size = min(left, PIECE_SAMPLES)
        piece_S, position = _floats(pcm, position, size)
        left -= size
        yield piece_S
    _check_end(pcm, position)


def octets(data: Any) -> Iterator[bytes]:
    """Yield binary data, or the list of bytes that the reference's own clients write, in pieces."""
    if isinstance(data, Binary):
        for start in range(data.start, data.end, _PIECE_BYTES):
            yield data.data[start : min(start + _PIECE_BYTES, data.end)]
        return
    if not isinstance(data, Listed) or data.count > _MAX_LISTED_BYTES:
        raise ProtocolError(f"data is binary, or a list of at most {_MAX_LISTED_BYTES} bytes")
    position, left = data.start, data.count
    while left:
        values, position = _elements(data, position, min(left, _PIECE_BYTES))
        left -= len(values)
        if not set(map(type, values)) <= {int} or not 0 <= min(values) <= max(values) <= 255:
            raise ProtocolError("data holds something that is not a byte")
        yield bytes(values)
    _check_end(data, position)


def cut_floats(data: bytes, key: str) -> tuple[bytes, FloatArray | None]:
    """Cut a list of floats of one width out of a message, so that a long one is not unpacked.

    Returns:
        The message with None as the value of `key`, and the list; or the message as it is, and None.
    """
    found = data.find(msgpack.packb(key))
    if found >= 0:
        start = found + len(msgpack.packb(key))
        value, _ = _value(data, start, len(data))
        if isinstance(value, Listed) and (read := _in_place(value, value.start, value.count)) is not None:
            floats, stop = read
            return data[:start] + msgpack.packb(None) + data[stop:], floats
    return data, None


# -------------------------------------------------------------------------------------------------------------- details

_FIXMAP = 0x80
_KEYS = ("type", "pcm", "data", "id")
_TYPE = b"\xa4type"
_AUDIO = b"\x82\xa4type\xa5Audio\xa3pcm"
_TAILS = (b"\xa4type\xa5Audio", b"\xa4type\xa7OggOpus")
_SCALAR_BYTES = 64
"""Longer than any key, type or number."""
_PIECE_BYTES = 4096
_MAX_LISTED_BYTES = 65_536
# How many bytes hold the length of an array or of binary data, by the first byte (the msgpack specification).
_ARRAYS, _BINARIES = {0xDC: 2, 0xDD: 4}, {0xC4: 1, 0xC5: 2, 0xC6: 4}
_FIXARRAY = range(0x90, 0xA0)
_SINGLE, _DOUBLE = b"\xca", b"\xcb"
_FLOATS = [(tag, np.dtype([("tag", "u1"), ("value", value)])) for tag, value in ((_SINGLE, ">f4"), (_DOUBLE, ">f8"))]


def _value(data: bytes, position: int, end: int) -> tuple[Any, int]:
    """The value at a position, and where it ends: a list must end at `end`, which is only checked when it is read."""
    first = data[position] if position < end else 0
    if first in _BINARIES:
        start = position + 1 + _BINARIES[first]
        stop = start + int.from_bytes(data[position + 1 : start], "big")
        if stop > end:
            raise ProtocolError("not a msgpack message: it ends in the middle of its binary data")
        return Binary(data, start, stop), stop
    if first in _FIXARRAY:
        start, count = position + 1, first - _FIXARRAY.start
    elif first in _ARRAYS:
        start = position + 1 + _ARRAYS[first]
        count = int.from_bytes(data[position + 1 : start], "big")
    else:
        return _scalar(data, position, end)
    if count > end - start:  # an element has at least one byte
        raise ProtocolError("not a msgpack message: it ends in the middle of a list")
    return Listed(data, count, start, end), end


def _scalar(data: bytes, position: int, end: int) -> tuple[Any, int]:
    values, stop = _unpack(data[position : min(end, position + _SCALAR_BYTES)], 1)
    return values[0], position + stop


def _floats(pcm: Listed, position: int, size: int) -> tuple[FloatArray, int]:
    """`size` samples at a position, and where they end."""
    if (read := _in_place(pcm, position, size)) is not None:
        return read
    listed, position = _elements(pcm, position, size)
    if not set(map(type, listed)) <= {float, int}:
        raise ProtocolError("pcm holds something that is not a number")
    with np.errstate(over="ignore"):
        return np.array(listed, np.float64).astype(np.float32), position


def _in_place(values: Listed, position: int, size: int) -> tuple[FloatArray, int] | None:
    """`size` floats of one width, which are read 20 times as fast, and where they end; None if they are not that."""
    for tag, dtype in _FLOATS:
        stop = position + dtype.itemsize * size
        # As bytes: a comparison in numpy takes four times as long.
        if stop <= values.end and values.data[position : stop : dtype.itemsize] == tag * size:
            found = np.frombuffer(values.data, dtype, size, position)["value"]
            if tag == _SINGLE:  # of the same width: `errstate` would take longer than the copy
                return found.astype(np.float32), stop
            with np.errstate(over="ignore"):  # larger values become infinite, which is refused
                return found.astype(np.float32), stop
    return None


def _elements(values: Listed, position: int, size: int) -> tuple[list[Any], int]:
    """`size` scalars at a position, and where they end."""
    longest = 9 * size  # a number has at most 9 bytes
    elements, used = _unpack(values.data[position : min(values.end, position + longest)], size)
    return elements, position + used


def _unpack(data: bytes, count: int) -> tuple[list[Any], int]:
    """`count` scalars at the beginning of `data`, and how many bytes they take."""
    unpacker = msgpack.Unpacker(max_str_len=_SCALAR_BYTES, max_array_len=0, max_map_len=0, max_bin_len=0, max_ext_len=0)
    try:
        unpacker.feed(data)
        values = list(islice(unpacker, count))
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a msgpack message: {str(error) or type(error).__name__}") from error
    if len(values) < count:
        raise ProtocolError("not a msgpack message: it ends too early")
    return values, unpacker.tell()


def _check_end(values: Listed, position: int) -> None:
    if position != values.end:
        raise ProtocolError("not a msgpack message: more follows its last value")
