"""Audio in containers, decoded by FFmpeg's libraries through PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from slipstream.audio.samples import Piece, from_integers, logger
from slipstream.errors import AudioError
from slipstream.types import FloatArray

if TYPE_CHECKING:
    import av
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream

_TRUNCATION_SECONDS = 1.0
# Shorter gaps between timestamps are the rounding of the container and the delay of the encoder; longer ones are
# timestamps gone wrong, such as a counter that was set anew.
_SHORTEST_GAP_SECONDS, _LONGEST_GAP_SECONDS = 0.1, 3600.0
# FFmpeg decodes a packet at once, to up to four times its size.
_LARGEST_PACKET_BYTES = 32 << 20
# ADTS has no header to state a duration; FFmpeg guesses one from the first bit rates.
GUESSED_DURATION = {"aac"}

# No protocol is called "none": a playlist or a concat script cannot make FFmpeg open other files or addresses.
_CONTAINER_OPTIONS = {"protocol_whitelist": "none"}


@contextmanager
def open_container(file: BinaryIO, name: str) -> Iterator[av.container.InputContainer]:
    import av

    try:
        container = av.open(file, mode="r", metadata_errors="ignore", options=_CONTAINER_OPTIONS)
    except av.error.FFmpegError as error:
        reason = _refusal(file) or error.strerror
        raise AudioError(f"{name}: not audio that FFmpeg can read: {reason}{_pipe_hint(file)}") from error
    with container:
        yield container


def _refusal(file: BinaryIO) -> str | None:
    """Why FFmpeg refuses a file, which it tells its log and not its caller: so the file is opened once more."""
    import av

    if not file.seekable():
        return None
    file.seek(0)
    skip_repeated = av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as log:
            av.open(file, mode="r", metadata_errors="ignore", options=_CONTAINER_OPTIONS).close()
    except av.error.FFmpegError:
        return log[-1][2].strip() if log else None
    finally:
        av.logging.set_level(None)
        av.logging.set_skip_repeated(skip_repeated)
    return None


def _pipe_hint(file: BinaryIO) -> str:
    return "" if file.seekable() else " (some formats cannot be read from a pipe: save it to a file first)"


def audio_stream(container: av.container.InputContainer, name: str) -> AudioStream:
    stream = container.streams.best("audio")
    if stream is None:
        raise AudioError(f"{name}: has no audio track")
    audio = cast("AudioStream", stream)
    if audio.codec_context is None:
        raise AudioError(f"{name}: FFmpeg has no decoder for its audio track")
    if audio.codec_context.sample_rate <= 0:
        raise AudioError(f"{name}: its header states a sample rate of {audio.codec_context.sample_rate} Hz")
    return audio


def declared_seconds(stream: AudioStream, container: av.container.InputContainer) -> float | None:
    if stream.duration is None or stream.time_base is None or container.format.name in GUESSED_DURATION:
        return None
    return float(stream.duration * stream.time_base)


def is_longer(file: BinaryIO, name: str, seconds: float) -> bool:
    """Whether the packets of a file say that it holds more audio than that; FFmpeg's own duration can be a guess."""
    with open_container(file, name) as container:
        stream = audio_stream(container, name)
        for packet in container.demux(stream):
            if packet.duration and packet.time_base:
                seconds -= float(packet.duration * packet.time_base)
            if seconds < 0:
                return True
    return False


def container_pieces(file: BinaryIO, name: str, max_gap_seconds: float = math.inf) -> Iterator[Piece]:
    with open_container(file, name) as container:
        stream = audio_stream(container, name)
        start = (container.start_time or 0) / 1_000_000
        damaged, seconds, missing = 0, 0.0, 0.0
        for packet_frames in _decoded_packets(container, stream):
            damaged += packet_frames is None
            for frame in packet_frames or ():
                rate = frame.sample_rate
                gap = 0.0 if frame.time is None else frame.time - start - seconds
                if _SHORTEST_GAP_SECONDS < gap < _LONGEST_GAP_SECONDS:
                    missing += gap
                    if missing > max_gap_seconds:
                        raise AudioError(
                            f"{name}: the gaps between its timestamps add up to more than {max_gap_seconds:g} s"
                        )
                    yield from _silence(gap, rate, frame.layout.nb_channels)
                    seconds += gap
                seconds += frame.samples / rate
                for samples_CS in _frame_samples(frame):
                    yield samples_CS, rate
        if damaged and not seconds:
            raise AudioError(f"{name}: none of its audio can be decoded{_pipe_hint(file)}")
        if damaged:
            logger.warning("%s: %d damaged packets were left out", name, damaged)
        if missing:
            logger.warning("%s: %.1f s of audio are missing; silence stands for them", name, missing)
        declared = declared_seconds(stream, container) or 0.0
        if seconds and declared - seconds > _TRUNCATION_SECONDS:
            logger.warning("%s: its header promises %.1f s, only %.1f s are there", name, declared, seconds)


def _silence(seconds: float, rate: int, channels: int) -> Iterator[Piece]:
    left = round(seconds * rate)
    while left > 0:
        samples = min(left, rate)
        yield np.zeros((channels, samples), np.float32), rate
        left -= samples


def _decoded_packets(container: av.container.InputContainer, stream: AudioStream) -> Iterator[list[AudioFrame] | None]:
    """The frames of each packet; None for a packet that cannot be decoded, after which FFmpeg goes on."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):  # IndexError: PyAV flushes a stream that appeared while it read the file
            return
        except av.error.FFmpegError:
            yield None
            return
        if packet.size > _LARGEST_PACKET_BYTES:
            raise AudioError(f"a packet of {packet.size} bytes: expected at most {_LARGEST_PACKET_BYTES}")
        try:
            yield packet.decode()
        except av.error.FFmpegError:
            yield None


def _frame_samples(frame: AudioFrame) -> Iterator[FloatArray]:
    """The samples of a frame, `[C, S]`, in pieces of at most a second: one packet can hold hours."""
    array: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, frame.layout.nb_channels).T
    for start in range(0, array.shape[1], frame.sample_rate):
        piece = array[:, start : start + frame.sample_rate]
        if piece.dtype == np.uint8:
            yield from_integers(piece.astype(np.int16) - 128 << 8)
        elif np.issubdtype(piece.dtype, np.signedinteger):
            yield from_integers(piece)
        else:
            yield piece.astype(np.float32, copy=False)
