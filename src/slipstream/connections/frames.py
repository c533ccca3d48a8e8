"""WebSocket frames (RFC 6455, section 5.2): find a client's before they are parsed, to count them; write a server's."""

from __future__ import annotations

import struct
from typing import NamedTuple

from websockets.frames import Opcode

try:
    from websockets.speedups import apply_mask
except ImportError:  # a build of websockets without its extension
    from websockets.utils import apply_mask


class FrameHead(NamedTuple):
    """The header of a frame. `length`: of its payload, in bytes."""

    fin: bool
    opcode: int
    length: int


class FramePart(NamedTuple):
    """Bytes of one frame, possibly incomplete. `head`: of the frame, None if the bytes are not its first ones."""

    head: FrameHead | None
    data: bytes

    @property
    def message(self) -> bytes | None:
        """The payload, if these bytes are a whole message of a client: one masked frame without extensions."""
        head, data = self.head, self.data
        if head is None or not head.fin or head.opcode not in (Opcode.TEXT, Opcode.BINARY):
            return None
        start = {126: 8, 127: 14}.get(data[1] & 0x7F, 6)
        if data[0] & 0x70 or not data[1] & 0x80 or len(data) != start + head.length:
            return None
        return apply_mask(memoryview(data)[start:], data[start - 4 : start])


class FrameCutter:
    """Cuts a stream of bytes, however it arrives, into frames."""

    def __init__(self) -> None:
        self._bytes = b""
        self._position = 0
        self._left = 0

    def push(self, data: bytes) -> None:
        """Take bytes. Those that arrive as one frame are never copied."""
        rest = self._bytes[self._position :]
        self._bytes = rest + data if rest else data
        self._position = 0

    def next(self) -> FramePart | None:
        """Return the next bytes, of one frame only; None when there are none, or its header is incomplete."""
        if self._position == len(self._bytes):
            return None
        head = None
        if not self._left:
            head, self._left = self._head()
            if head is None:
                return None
        end = min(self._position + self._left, len(self._bytes))
        data = self._bytes[self._position : end]
        self._left -= len(data)
        self._position = end
        return FramePart(head, data)

    def _head(self) -> tuple[FrameHead | None, int]:
        """Return the header at the position and the size of its frame; None until it is complete."""
        held, start = self._bytes, self._position
        if len(held) < start + 2:
            return None, 0
        short = held[start + 1] & 0x7F
        wide = {126: 2, 127: 8}.get(short, 0)
        size = 2 + wide + (4 if held[start + 1] & 0x80 else 0)
        if len(held) < start + size:
            return None, 0
        length = int.from_bytes(held[start + 2 : start + 2 + wide], "big") if wide else short
        return FrameHead(bool(held[start] & 0x80), held[start] & 0x0F, length), size + length


def message_frame(message: str | bytes) -> bytes:
    """Return a server's frame with a whole message: unmasked, without extensions."""
    opcode, data = (Opcode.TEXT, message.encode()) if isinstance(message, str) else (Opcode.BINARY, message)
    first, length = 0x80 | opcode, len(data)
    if length < 126:
        return bytes((first, length)) + data
    head = struct.pack("!BBH", first, 126, length) if length < 1 << 16 else struct.pack("!BBQ", first, 127, length)
    return head + data
