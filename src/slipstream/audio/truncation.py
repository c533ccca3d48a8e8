"""Signs of a file that was cut off, where FFmpeg reports none."""

from __future__ import annotations

import struct

LAST_BYTES = 1 << 17
"""At the end of a file: an Ogg page has at most 65,307 bytes."""
_UNKNOWN_FROM = 0x7FFF_0000
"""Programs that write WAV to a pipe state a length of about 2 or 4 GiB."""
_OGG_HEADER_BYTES, _OGG_ENDS_STREAM = 27, 4


def wav_seconds(head: bytes) -> float | None:
    """Return the seconds of audio that a WAV header states; None if it states none.

    Args:
        head: The first bytes of the file, up to the audio.
    """
    if head[:4] != b"RIFF":  # RF64, BW64 and RIFX are rare
        return None
    position, bytes_per_second = 12, 0
    while position + 8 <= len(head):
        name, (size,) = head[position : position + 4], struct.unpack_from("<I", head, position + 4)
        if name == b"fmt " and position + 20 <= len(head):
            (bytes_per_second,) = struct.unpack_from("<I", head, position + 16)
        if name == b"data":
            return size / bytes_per_second if bytes_per_second and 0 < size < _UNKNOWN_FROM else None
        position += 8 + size + size % 2
    return None


def ends_ogg(last: bytes) -> bool:
    """Return whether the last bytes of an Ogg file end with a complete page that is the last one of its stream.

    Args:
        last: At least the last page.
    """
    page = last[last.rfind(b"OggS") :]
    if len(page) < _OGG_HEADER_BYTES or not page.startswith(b"OggS\0"):
        return False
    body = _OGG_HEADER_BYTES + page[_OGG_HEADER_BYTES - 1]
    return bool(page[5] & _OGG_ENDS_STREAM) and len(page) >= body + sum(page[_OGG_HEADER_BYTES:body])
