"""Small messages that hold much audio, or cost much for what they hold."""

from __future__ import annotations

import struct

OPUS_HEAD = b"OpusHead\x01\x01\0\0\x80\xbb\0\0\0\0\0"
OPUS_TAGS = b"OpusTags\x04\0\0\0test\0\0\0\0"
SILK_60_MS = b"\x18"
"""An Opus packet of one byte, which decodes to 60 ms."""


def ogg_page(flags: int, packets: list[bytes]) -> bytes:
    """An Ogg page (RFC 3533, section 6) without a checksum; flag 2 begins a stream."""
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    head = b"OggS\0" + bytes([flags]) + struct.pack("<QII", 0, 1, 0) + bytes(4) + bytes([len(lacing)])
    return head + lacing + b"".join(packets)


def opus_bomb(packet: bytes, size: int) -> bytes:
    """About `size` bytes of an Ogg Opus stream of the same packet: of `SILK_60_MS`, 64 KiB hold 31 minutes."""
    start = ogg_page(2, [OPUS_HEAD]) + ogg_page(0, [OPUS_TAGS])
    page = ogg_page(0, [packet] * 255)
    return start + page * ((size - len(start)) // len(page))
