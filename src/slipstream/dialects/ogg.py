"""Decode a live Ogg Opus stream from bytes that are cut anywhere.

This module parses the container; FFmpeg (PyAV) decodes the packets. FFmpeg's own demuxer needs a blocking file, and so
a thread per stream; parsing a page (RFC 3533, section 6) takes a few lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import Resampler
from slipstream.dialects.protocol import ProtocolError

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext

OPUS_RATE = 48_000
MAX_STREAMS = 100
"""Each needs a new decoder, which takes as long as decoding 10 s of audio."""
_PIECE_SAMPLES = OPUS_RATE // 4
_PIECE_COST = 20
"""Packets and pages per piece; a new decoder counts as this many."""
MAX_PACKET_BYTES = 61_440
"""The largest packet a decoder need accept (RFC 7845, section 6)."""


class OggOpusDecoder:
    """Decodes one Ogg Opus stream, or several one after the other, to mono at `sample_rate` Hz.

    Raises `ProtocolError` for bytes that are not Ogg Opus.
    """

    def __init__(self, sample_rate: int) -> None:
        self._packets = OggPackets()
        self._codec: AudioCodecContext | None = None
        self._resampler = Resampler(OPUS_RATE, sample_rate)
        self._streams = 0

    def push(self, data: bytes) -> Iterator[FloatArray]:
        """Take bytes. Yields the samples they complete in pieces `[S]`, which may be empty; up to 0.1 s is held back.

        One byte may hold 60 ms of audio, and 27 bytes an empty page: a piece ends by its samples or by its cost.
        """
        decoded: list[FloatArray] = []
        samples = cost = 0
        for packet, starts_stream in self._packets.push(data):
            cost += 1
            if packet is None:
                pass
            elif starts_stream:
                self._streams += 1
                if self._streams > MAX_STREAMS:
                    raise ProtocolError(f"more than {MAX_STREAMS} Ogg streams one after another")
                self._codec = opus_codec(packet)
                cost += _PIECE_COST
            elif packet[:8] != b"OpusTags":
                frames = self._decode(packet)
                decoded += frames
                samples += sum(frame.shape[1] for frame in frames)
            if cost >= _PIECE_COST or samples >= _PIECE_SAMPLES:
                yield self._resampled(decoded)
                decoded, samples, cost = [], 0, 0
        yield self._resampled(decoded)

    def flush(self, *, last: bool) -> FloatArray:
        """Return the samples `[S]` that were held back.

        Args:
            last: Whether the audio ends here. Otherwise it continues as without this call (`Resampler.drain`).
        """
        rest_S: FloatArray = (self._resampler.flush() if last else self._resampler.drain())[0]
        if last:
            self._resampler = Resampler(OPUS_RATE, self._resampler.to_rate)
        return rest_S

    def _resampled(self, decoded: list[FloatArray]) -> FloatArray:
        nothing = np.zeros((1, 0), np.float32)
        mono_S: FloatArray = self._resampler.push(np.concatenate([nothing, *decoded], axis=1))[0]
        return mono_S

    def _decode(self, packet: bytes) -> list[FloatArray]:
        import av

        if self._codec is None:
            raise ProtocolError("Ogg Opus must begin with an OpusHead packet")
        try:
            frames = self._codec.decode(av.Packet(packet))
        except av.error.FFmpegError as error:
            raise ProtocolError(f"not an Opus packet: {error.strerror}") from error
        return [frame.to_ndarray().mean(axis=0, keepdims=True) for frame in frames]


class OggPackets:
    """Cuts a byte stream of Ogg pages into packets. Buffers at most one page and one packet."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._packet = bytearray()

    def push(self, data: bytes) -> Iterator[tuple[bytes | None, bool]]:
        """Take bytes. Yields the packets they complete, each with whether it begins a logical stream; None ends a page.

        Raises `ProtocolError` for bytes that are not a page, or a packet that is too long.
        """
        self._bytes += data
        while (page := self._next_page()) is not None:
            begins, lengths, body = page
            start = 0
            for length in lengths:
                self._packet += body[start : start + length]
                start += length
                if len(self._packet) > MAX_PACKET_BYTES:
                    raise ProtocolError(f"an Opus packet of more than {MAX_PACKET_BYTES} bytes")
                if length < 255:  # a lacing value below 255 ends the packet
                    yield bytes(self._packet), begins
                    self._packet.clear()
                    begins = False
            yield None, False

    def _next_page(self) -> tuple[bool, bytes, bytes] | None:
        """Return whether a page begins a stream, its lacing values and its body; None until it is complete."""
        held = self._bytes
        if not b"OggS\0".startswith(held[:5]):
            raise ProtocolError("not an Ogg stream: a page begins with 'OggS'")
        if len(held) < _HEADER_BYTES or len(held) < _HEADER_BYTES + held[_HEADER_BYTES - 1]:
            return None
        body_start = _HEADER_BYTES + held[_HEADER_BYTES - 1]
        lengths = bytes(held[_HEADER_BYTES:body_start])
        end = body_start + sum(lengths)
        if len(held) < end:
            return None
        flags, body = held[5], bytes(held[body_start:end])
        del held[:end]
        if not flags & _CONTINUED:
            self._packet.clear()
        return bool(flags & _BEGINS_STREAM), lengths, body


_HEADER_BYTES = 27
_CONTINUED, _BEGINS_STREAM = 1, 2


def opus_codec(head: bytes) -> AudioCodecContext:
    """Make a decoder from an identification header (RFC 7845, section 5.1); it also trims the pre-skip."""
    import av
    from av.audio.codeccontext import AudioCodecContext

    if head[:8] != b"OpusHead" or len(head) < 19 or head[8] >> 4:
        raise ProtocolError("the Ogg stream is not Opus: its first packet is not an OpusHead of version 0 or 1")
    if not 1 <= head[9] <= 2 or head[18]:
        raise ProtocolError(f"Opus of {head[9]} channels, mapping family {head[18]}: send mono or stereo, family 0")
    codec = av.CodecContext.create("opus", "r")
    assert isinstance(codec, AudioCodecContext)
    codec.extradata = head
    try:
        codec.open()
    except av.error.FFmpegError as error:
        raise ProtocolError(f"FFmpeg cannot decode this Opus stream: {error.strerror}") from error
    return codec
