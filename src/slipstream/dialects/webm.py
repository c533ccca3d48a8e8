"""Cut a live WebM or Matroska stream into the packets of its audio track, from bytes that are cut anywhere.

This reads the few elements that a stream of audio needs (RFC 8794, RFC 9559): the tracks, and the blocks of clusters.
Masters of unknown size, as browsers record them, need no special case: their children follow directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from slipstream.dialects.ogg import MAX_PACKET_BYTES
from slipstream.dialects.protocol import ProtocolError

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext

CODECS = {"A_OPUS": "opus", "A_VORBIS": "vorbis", "A_FLAC": "flac", "A_MPEG/L3": "mp3"}
_SEGMENT, _CLUSTER, _BLOCK_GROUP = 0x18538067, 0x1F43B675, 0xA0
_TRACKS, _BLOCK, _SIMPLE_BLOCK = 0x1654AE6B, 0xA1, 0xA3
_TRACK_ENTRY, _NUMBER, _TYPE, _CODEC, _CODEC_PRIVATE = 0xAE, 0xD7, 0x83, 0x86, 0x63A2
_AUDIO = 2
_LACING = 0x06
_UNKNOWN = -1


class WebmPackets:
    """The packets of the first audio track. Buffers at most the tracks or one block."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._skip = 0
        self._track: int | None = None
        self.codec: AudioCodecContext | None = None

    def push(self, data: bytes) -> Iterator[bytes | None]:
        """Take bytes. Yields the packets they complete, and None for each other element.

        Raises `ProtocolError` for bytes that are not WebM, or an audio codec that cannot be decoded.
        """
        self._held += data
        while True:
            if self._skip:
                skipped = min(self._skip, len(self._held))
                del self._held[:skipped]
                self._skip -= skipped
            if self._skip or (header := _header(self._held)) is None:
                return
            id, size, start = header
            if id in (_SEGMENT, _CLUSTER, _BLOCK_GROUP):
                del self._held[:start]
                yield None
                continue
            if size == _UNKNOWN:
                raise ProtocolError(f"not a WebM stream: the element {id:#x} has no size")
            if id not in (_TRACKS, _BLOCK, _SIMPLE_BLOCK):
                self._skip = start + size
                yield None
                continue
            if size > MAX_PACKET_BYTES:
                raise ProtocolError(f"a WebM element of {size} bytes: at most {MAX_PACKET_BYTES} are expected")
            if len(self._held) < start + size:
                return
            body = bytes(self._held[start : start + size])
            del self._held[: start + size]
            if id == _TRACKS:
                self._read_tracks(body)
                yield None
            else:
                yield self._packet(body)

    def _packet(self, block: bytes) -> bytes | None:
        if self.codec is None:
            raise ProtocolError("not a WebM stream: its tracks must come before its blocks")
        number = _integer(block, 0, keep_marker=False)
        if number is None or len(block) < number[1] + 3:
            raise ProtocolError("not a WebM stream: a block ends too early")
        track, start = number
        if track != self._track:
            return None
        if block[start + 2] & _LACING:
            raise ProtocolError("WebM blocks with lacing are not supported: send one packet per block")
        return block[start + 3 :]

    def _read_tracks(self, body: bytes) -> None:
        for id, entry in _children(body):
            fields = dict(_children(entry)) if id == _TRACK_ENTRY else {}
            if int.from_bytes(fields.get(_TYPE, b""), "big") == _AUDIO:
                self._track = int.from_bytes(fields.get(_NUMBER, b""), "big")
                self.codec = _open_codec(fields.get(_CODEC, b"").decode("ascii", "replace"), fields)
                return
        raise ProtocolError("the WebM stream has no audio track")


def _open_codec(name: str, fields: dict[int, bytes]) -> AudioCodecContext:
    import av
    from av.audio.codeccontext import AudioCodecContext

    if name not in CODECS:
        raise ProtocolError(f"the WebM stream has the codec {name!r:.40}: expected one of {', '.join(CODECS)}")
    codec = av.CodecContext.create(CODECS[name], "r")
    assert isinstance(codec, AudioCodecContext)
    codec.extradata = fields.get(_CODEC_PRIVATE)
    try:
        codec.open()
    except av.error.FFmpegError as error:
        raise ProtocolError(f"FFmpeg cannot decode this WebM stream: {error.strerror}") from error
    return codec


def _header(held: bytes | bytearray, start: int = 0) -> tuple[int, int, int] | None:
    """Return the ID and the size of an element and where its body begins; None until they are complete."""
    id = _integer(held, start, keep_marker=True)
    size = _integer(held, id[1], keep_marker=False) if id else None
    return (id[0], size[0], size[1]) if id and size else None


def _integer(held: bytes | bytearray, start: int, *, keep_marker: bool) -> tuple[int, int] | None:
    """Return a variable-size integer and where it ends; -1 if all its bits are set, as for an unknown size."""
    if start >= len(held):
        return None
    length = 9 - held[start].bit_length()
    if length > (4 if keep_marker else 8):
        raise ProtocolError("not a WebM stream: an element begins with an invalid byte")
    if len(held) < start + length:
        return None
    value = int.from_bytes(held[start : start + length], "big")
    if not keep_marker:
        value &= (1 << 7 * length) - 1
        if value == (1 << 7 * length) - 1:
            value = _UNKNOWN
    return value, start + length


def _children(body: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(body) and (header := _header(body, position)) is not None:
        id, size, start = header
        if size < 0 or start + size > len(body):
            raise ProtocolError("not a WebM stream: an element is longer than its parent")
        yield id, body[start : start + size]
        position = start + size
