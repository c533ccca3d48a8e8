"""Decode live audio of any format that can be cut into packets: raw samples, packets of a codec, and containers.

Each decoder takes the bytes of a stream, cut anywhere, and yields its samples at the model's rate in small pieces.
FFmpeg (PyAV) decodes packets; what cuts a stream into them is here or in `ogg`, `webm` and `wav`, since FFmpeg's own
demuxers need a blocking file, and so a thread per stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import Channels, Converter, Encoding, PcmDecoder, RawFormat
from slipstream.audio.channels import downmix_weights
from slipstream.audio.samples import equal_weights, frame_samples
from slipstream.dialects.ogg import MAX_STREAMS, OggPackets, opus_codec
from slipstream.dialects.protocol import PIECE_SAMPLES, Audio, ProtocolError, check_audio
from slipstream.dialects.wav import WavHeader
from slipstream.dialects.webm import WebmPackets
from slipstream.errors import AudioError

if TYPE_CHECKING:
    import av
    from av.audio.codeccontext import AudioCodecContext

MAX_CHANNELS = 8
LOWEST_RATE = 4_000
"""At lower rates, speech cannot be recognised, and a byte would become more than 6 samples of the model."""
_PIECE_BYTES = 1 << 16
_PIECE_COST = 20
"""Packets and pages per piece."""
_PARSED_BYTES = 1 << 12
_BAD_PACKETS = 10
"""A decoder may begin in the middle of a stream, and tags may precede its first packet."""


class LiveDecoder(ABC):
    """Decodes one stream to `[C, S]` at `sample_rate` Hz; one channel unless `channels` is `separate`."""

    def __init__(self, sample_rate: int, channels: Channels = "mix") -> None:
        self.sample_rate, self.channels = sample_rate, channels

    @abstractmethod
    def push(self, data: bytes) -> Iterator[FloatArray]:
        """Take bytes. Yields the samples they complete, in pieces that may be empty.

        Raises `ProtocolError` for bytes that are not of the format.
        """

    @abstractmethod
    def flush(self, *, last: bool) -> Iterator[FloatArray]:
        """Yield the samples that are held back.

        Args:
            last: Whether the stream ends here. Otherwise it continues as without this call (`Converter.drain`).
        """

    def audio(self, data: bytes, channel: int = 0) -> Iterator[Audio]:
        """Take bytes of a stream that is decoded to one channel. Yields its `Audio`: see `push`."""
        for piece_CS in self.push(data):
            yield Audio(piece_CS[0], channel)

    def rest(self, channel: int = 0, *, last: bool) -> Iterator[Audio]:
        """Yield the `Audio` that is held back: see `flush`."""
        for piece_CS in self.flush(last=last):
            yield Audio(piece_CS[0], channel)


class PcmStream(LiveDecoder):
    """Raw samples, cut anywhere. At most 0.12 s are held back."""

    def __init__(self, format: RawFormat, sample_rate: int, channels: Channels = "mix") -> None:
        super().__init__(sample_rate, channels)
        if format.channels > MAX_CHANNELS:
            raise ProtocolError(f"channels={format.channels}: expected 1 to {MAX_CHANNELS}")
        self.format = format
        piece_frames = max(1, format.sample_rate * PIECE_SAMPLES // sample_rate)
        self._piece_bytes = min(piece_frames * format.channels * format.sample_bytes, _PIECE_BYTES)
        self.restart()

    def push(self, data: bytes) -> Iterator[FloatArray]:
        for start in range(0, len(data), self._piece_bytes):
            samples_CS = self._pcm.push(data[start : start + self._piece_bytes])
            check_audio(samples_CS.reshape(-1))
            yield self._converter.push(samples_CS)

    def flush(self, *, last: bool) -> Iterator[FloatArray]:
        rest_CS = self._converter.flush() if last else self._converter.drain()
        if last:
            self.restart()
        if rest_CS.shape[1]:
            yield rest_CS

    def restart(self) -> None:
        """Drop what was pushed."""
        format = self.format
        self._pcm = PcmDecoder(format)
        self._converter = Converter(format.sample_rate, equal_weights(format.channels), self.sample_rate, self.channels)


def check_format(encoding: Any, sample_rate: int, channels: int = 1) -> RawFormat:
    """Return the format of a client's audio. Raises `ProtocolError` that names the invalid value."""
    if encoding not in get_args(Encoding):
        raise ProtocolError(f"encoding={encoding!r:.40}: expected one of {', '.join(get_args(Encoding))}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ProtocolError(f"channels={channels}: expected 1 to {MAX_CHANNELS}")
    if sample_rate < LOWEST_RATE:
        raise ProtocolError(f"sample_rate={sample_rate}: expected at least {LOWEST_RATE} Hz")
    try:
        return RawFormat(encoding, sample_rate, channels)
    except AudioError as error:
        raise ProtocolError(str(error)) from error


Packets: TypeAlias = "Iterator[tuple[AudioCodecContext, av.Packet[Any]] | None]"
"""Packets with their decoder; None for what costs time and holds no audio."""


class PacketStream(LiveDecoder):
    """Packets of a codec. `cut` cuts bytes into packets; None ends the stream."""

    def __init__(self, cut: Callable[[bytes | None], Packets], sample_rate: int, channels: Channels = "mix") -> None:
        super().__init__(sample_rate, channels)
        self._cut = cut
        self._converter: Converter | None = None
        self._layout: tuple[int, int] | None = None
        self._bad = 0

    def push(self, data: bytes | None) -> Iterator[FloatArray]:
        cost = 0
        for item in self._cut(data):
            cost += 1
            if item is not None:
                for piece in self._decode(*item):
                    cost = 0
                    yield piece
            if cost >= _PIECE_COST:
                cost = 0
                yield np.zeros((1, 0), np.float32)

    def flush(self, *, last: bool) -> Iterator[FloatArray]:
        if last:
            yield from self.push(None)
            yield from self._end_converter()
        elif self._converter is not None:
            yield self._converter.drain()

    def _end_converter(self) -> Iterator[FloatArray]:
        converter, self._converter = self._converter, None
        if converter is not None:
            yield converter.flush()

    def _decode(self, codec: AudioCodecContext, packet: av.Packet[Any]) -> Iterator[FloatArray]:
        import av

        try:
            frames = codec.decode(packet)
        except av.error.FFmpegError as error:
            self._bad += 1
            if self._bad > _BAD_PACKETS:
                raise ProtocolError(f"not {codec.name} audio: {error.strerror}") from error
            return
        for frame in frames:
            self._bad = 0
            for samples_CS in frame_samples(frame):
                check_audio(samples_CS.reshape(-1))
                for start in range(0, samples_CS.shape[1], PIECE_SAMPLES):
                    piece_CS = samples_CS[:, start : start + PIECE_SAMPLES]
                    yield from self._converted(piece_CS, frame.sample_rate, frame.layout.name)

    def _converted(self, piece_CS: FloatArray, rate: int, layout: str) -> Iterator[FloatArray]:
        count = len(piece_CS)
        if self._layout is not None and (count, rate) != self._layout:
            if self.channels == "separate" and count != self._layout[0]:
                raise ProtocolError(f"the stream changes from {self._layout[0]} to {count} channels")
            yield from self._end_converter()
        self._layout = count, rate
        if self._converter is None:
            if count > MAX_CHANNELS:
                raise ProtocolError(f"the stream has {count} channels: expected 1 to {MAX_CHANNELS}")
            try:
                self._converter = Converter(rate, downmix_weights(layout, count), self.sample_rate, self.channels)
            except AudioError as error:
                raise ProtocolError(str(error)) from error
        yield self._converter.push(piece_CS)


class WavStream(LiveDecoder):
    """A WAV file whose samples arrive live."""

    def __init__(self, sample_rate: int, channels: Channels = "mix") -> None:
        super().__init__(sample_rate, channels)
        self._header = WavHeader()
        self._pcm: PcmStream | None = None

    def push(self, data: bytes) -> Iterator[FloatArray]:
        samples = self._header.push(data)
        if self._pcm is None and self._header.format is not None:
            self._pcm = PcmStream(self._header.format, self.sample_rate, self.channels)
        if self._pcm is not None:
            yield from self._pcm.push(samples)

    def flush(self, *, last: bool) -> Iterator[FloatArray]:
        if self._pcm is not None:
            yield from self._pcm.flush(last=last)


class Container(LiveDecoder):
    """A stream whose first bytes identify its format."""

    def __init__(self, sample_rate: int, channels: Channels = "mix") -> None:
        super().__init__(sample_rate, channels)
        self._held = b""
        self._stream: LiveDecoder | None = None

    def push(self, data: bytes) -> Iterator[FloatArray]:
        if self._stream is None:
            self._held += data
            if len(self._held) < _SNIFFED_BYTES:
                return
            self._stream = open_container(self._held, self.sample_rate, self.channels)
            data, self._held = self._held, b""
        yield from self._stream.push(data)

    def flush(self, *, last: bool) -> Iterator[FloatArray]:
        if self._stream is not None:
            yield from self._stream.flush(last=last)


_SNIFFED_BYTES = 12
CONTAINERS = "WAV, Ogg Opus, WebM, FLAC, MP3, AAC (ADTS) or AMR"


def open_container(head: bytes, sample_rate: int, channels: Channels = "mix") -> LiveDecoder:
    """Return the decoder for a stream that begins with `head`. Raises `ProtocolError` for an unknown format."""
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return WavStream(sample_rate, channels)
    if head[:4] == b"OggS":
        return ogg_opus(sample_rate, channels)
    if head[:4] == b"\x1aE\xdf\xa3":
        return webm(sample_rate, channels)
    for name, begins in _ELEMENTARY.items():
        if begins(head):
            return elementary(name, sample_rate, channels)
    if head[4:8] == b"ftyp":
        raise ProtocolError(f"MP4 cannot be decoded live: send {CONTAINERS}, or upload the file")
    raise ProtocolError(
        f"the audio begins like no known container: send {CONTAINERS}, or state encoding and sample_rate"
    )


_AMR_NB, _AMR_WB = b"#!AMR\n", b"#!AMR-WB\n"
_ELEMENTARY: dict[str, Callable[[bytes], bool]] = {
    "flac": lambda head: head[:4] == b"fLaC",
    "aac": lambda head: head[0] == 0xFF and head[1] & 0xF6 == 0xF0,
    "mp3": lambda head: head[:3] == b"ID3" or (head[0] == 0xFF and head[1] & 0xE0 == 0xE0),
    "amrnb": lambda head: head[:6] == _AMR_NB,
    "amrwb": lambda head: head[:9] == _AMR_WB,
}
_RATES = {"amrnb": 8_000, "amrwb": 16_000, "g729": 8_000, "opus": 48_000}
"""Of codecs whose packets do not state it."""


def elementary(name: str, sample_rate: int, channels: Channels = "mix") -> PacketStream:
    """Return the decoder of a codec whose packets FFmpeg finds in a stream of bytes."""
    codec = _codec(name)
    started = name not in ("amrnb", "amrwb")
    held = b""

    def cut(data: bytes | None) -> Packets:
        nonlocal started, held
        if data is None:
            while packets := codec.parse(None):
                yield from ((codec, packet) for packet in packets)
            return
        if not started:
            held += data
            magic = _AMR_WB if name == "amrwb" else _AMR_NB
            if len(held) < len(magic):
                return
            data, started = held.removeprefix(magic), True
        for start in range(0, len(data), _PARSED_BYTES):
            yield None
            for packet in codec.parse(data[start : start + _PARSED_BYTES]):
                yield codec, packet

    return PacketStream(cut, sample_rate, channels)


def packets(
    name: str, sample_rate: int, channels: Channels = "mix", layout: str = "mono", size: int | None = None
) -> PacketStream:
    """Return the decoder of bare packets: each message is one, or several of `size` bytes."""
    import av

    codec = _codec(name, layout)

    def cut(data: bytes | None) -> Packets:
        if data:
            step = size or len(data)
            for start in range(0, len(data), step):
                yield codec, av.Packet(data[start : start + step])

    return PacketStream(cut, sample_rate, channels)


def ogg_opus(sample_rate: int, channels: Channels = "mix") -> PacketStream:
    """Return the decoder of Ogg Opus."""
    import av

    ogg = OggPackets()
    codec: AudioCodecContext | None = None
    streams = 0

    def cut(data: bytes | None) -> Packets:
        nonlocal codec, streams
        for packet, starts_stream in ogg.push(data or b""):
            if starts_stream and packet is not None:
                streams += 1
                if streams > MAX_STREAMS:
                    raise ProtocolError(f"more than {MAX_STREAMS} Ogg streams one after another")
                codec = opus_codec(packet)
                yield from [None] * _PIECE_COST
            elif packet is None or packet[:8] == b"OpusTags":
                yield None
            elif codec is None:
                raise ProtocolError("Ogg Opus must begin with an OpusHead packet")
            else:
                yield codec, av.Packet(packet)

    return PacketStream(cut, sample_rate, channels)


def webm(sample_rate: int, channels: Channels = "mix") -> PacketStream:
    """Return the decoder of WebM."""
    import av

    stream = WebmPackets()

    def cut(data: bytes | None) -> Packets:
        for packet in stream.push(data or b""):
            yield (stream.codec, av.Packet(packet)) if packet and stream.codec is not None else None

    return PacketStream(cut, sample_rate, channels)


def _codec(name: str, layout: str = "mono") -> AudioCodecContext:
    import av
    from av.audio.codeccontext import AudioCodecContext

    codec = av.CodecContext.create(name, "r")
    assert isinstance(codec, AudioCodecContext)
    if name in _RATES:
        codec.sample_rate = _RATES[name]
        codec.layout = layout
    return codec
