"""Audio in containers, decoded by FFmpeg's libraries through PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from slipstream.audio.channels import downmix_weights
from slipstream.audio.samples import Piece, Warn, frame_samples, log_warning
from slipstream.audio.source import Pipe, Readable, can_seek
from slipstream.audio.timeline import Timeline, has_clocks, timeline
from slipstream.audio.truncation import ends_ogg
from slipstream.audio.wav import WavPart, wav_parts
from slipstream.errors import AudioError

if TYPE_CHECKING:
    import av
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.packet import Packet

_TRUNCATION_SECONDS = 1.0
# FFmpeg decodes a packet in one call, to up to four times its size.
_LARGEST_PACKET_BYTES = 32 << 20
# ADTS has no header to state a duration; FFmpeg guesses one from the first bit rates.
_GUESSED_DURATION = {"aac"}

# No protocol is called "none": a playlist or a concat script cannot make FFmpeg open other files or addresses.
_CONTAINER_OPTIONS = {"protocol_whitelist": "none"}


@contextmanager
def open_container(file: Readable, name: str) -> Iterator[av.container.InputContainer]:
    import av

    try:
        container = av.open(file, mode="r", metadata_errors="ignore", options=_CONTAINER_OPTIONS)
    except av.error.FFmpegError as error:
        reason = _refusal(file) or error.strerror
        raise AudioError(f"{name}: not audio that FFmpeg can read: {reason}") from error
    except OSError as error:
        raise AudioError(f"{name}: cannot be read: {error.strerror or error}") from error
    with container:
        yield container


def _refusal(file: Readable) -> str | None:
    """Return why FFmpeg refuses a file: open it again to read the reason from FFmpeg's log."""
    import av

    if not can_seek(file):
        return None
    file.seek(0)
    if not file.read(1):
        return "it is empty"
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


def audio_stream(container: av.container.InputContainer, name: str, track: int | None = None) -> AudioStream:
    """Return an audio track, counted from 1; None is the one that players choose."""
    tracks = container.streams.audio
    best = container.streams.best("audio")
    if best is None:
        raise AudioError(f"{name}: has no audio track")
    if track is not None and not 1 <= track <= len(tracks):
        raise AudioError(f"{name}: has no audio track {track}: choose {_describe_tracks(tracks)}")
    audio = cast("AudioStream", best) if track is None else tracks[track - 1]
    if audio.codec_context is None:
        raise AudioError(f"{name}: FFmpeg has no decoder for its audio track")
    if audio.codec_context.sample_rate <= 0:
        raise AudioError(f"{name}: its header states a sample rate of {audio.codec_context.sample_rate} Hz")
    return audio


def _describe_tracks(tracks: tuple[AudioStream, ...]) -> str:
    """Such as `1 (eng, aac, stereo) or 2 (fra, aac, mono)`."""
    descriptions = []
    for number, stream in enumerate(tracks, 1):
        codec = stream.codec_context
        about = [stream.metadata.get("title"), stream.language, *((codec.name, codec.layout.name) if codec else ())]
        descriptions.append(f"{number} ({', '.join(filter(None, about))})")
    return " or ".join(descriptions)


def declared_seconds(stream: AudioStream, container: av.container.InputContainer) -> float | None:
    """Return the duration of a track in its header; None without one."""
    if stream.duration is None or stream.time_base is None:
        return None
    shared = container.format.name == "asf" and len(container.streams) > 1  # one duration for all tracks
    if shared or container.format.name in _GUESSED_DURATION or has_clocks(container):
        return None
    return float(stream.duration * stream.time_base)


def file_seconds(container: av.container.InputContainer) -> float | None:
    """Return the duration of a file by its header, or by its size and last timestamp."""
    if not container.duration or container.format.name in _GUESSED_DURATION:
        return None
    return container.duration / 1_000_000


def is_longer(file: BinaryIO, name: str, seconds: float) -> bool:
    """Return whether a file has more audio than `seconds`, by its packets: FFmpeg's own duration can be a guess."""
    with open_container(file, name) as container:
        stream = audio_stream(container, name)
        for packet in container.demux(stream):
            if packet.duration and packet.time_base:
                seconds -= float(packet.duration * packet.time_base)
            if seconds < 0:
                return True
    return False


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read: see `slipstream.audio.decode`. `name`: of the file in errors and warnings."""

    name: str
    track: int | None = None
    max_gap_seconds: float = math.inf
    warn: Warn = log_warning


def container_pieces(file: BinaryIO, reading: Reading) -> Iterator[Piece]:
    """Decode a file of any format. A pipe is copied to disk where its format turns out to need seeking."""
    if can_seek(file):
        yield from _all_pieces(file, reading)
        return
    started = False
    with closing(Pipe(file, reading.name)) as pipe:
        try:
            for piece in _all_pieces(pipe, reading):
                started = True
                pipe.close()
                yield piece
        except AudioError:
            if started:
                raise
        if not started:
            with pipe.rest_on_disk() as copy:
                yield from _all_pieces(copy, reading)


def _all_pieces(file: Readable, reading: Reading) -> Iterator[Piece]:
    parts = 0
    for part in wav_parts(file, reading.name):
        parts += 1
        yield from _part_pieces(part, reading)
    if parts > 1:
        reading.warn(f"{reading.name}: holds {parts} WAV files one after the other; all of them are read")


def _part_pieces(file: WavPart, reading: Reading) -> Iterator[Piece]:
    name, warn = reading.name, reading.warn
    with open_container(file, name) as container:
        stream = audio_stream(container, name, reading.track)
        if reading.track is None:
            _warn_of_other_tracks(container, stream, reading)
        time, damaged = timeline(container), 0
        for packet, frames in _decoded_packets(container, stream, name):
            if frames is None:
                damaged += 1
                time.damage(float(packet.duration * packet.time_base) if packet and packet.duration else 0.0)
            for frame in frames or ():
                yield from _frame_pieces(frame, time, reading)
        if damaged and not time.seconds:
            raise AudioError(f"{name}: its audio cannot be decoded")
        if damaged:
            warn(f"{name}: {damaged} damaged packets are left out")
        _warn_of_timestamps(time, reading)
        _warn_of_truncation(time, container, stream, file, reading)


def _frame_pieces(frame: AudioFrame, time: Timeline, reading: Reading) -> Iterator[Piece]:
    rate, weights = frame.sample_rate, downmix_weights(frame.layout.name, frame.layout.nb_channels)
    silence = round(time.gap(frame.time) * rate)
    if time.late + time.missing > (most := reading.max_gap_seconds):
        raise AudioError(f"{reading.name}: the gaps between its timestamps add up to more than {most:g} s")
    for start in range(0, silence, rate):
        yield Piece(np.zeros((len(weights), min(rate, silence - start)), np.float32), rate, weights)
    for samples_CS in frame_samples(frame):
        yield Piece(samples_CS, rate, weights)
    time.advance(frame.time, frame.samples / rate)


def _warn_of_other_tracks(container: av.container.InputContainer, stream: AudioStream, reading: Reading) -> None:
    tracks = container.streams.audio
    if len(tracks) > 1:
        chosen = next(number for number, other in enumerate(tracks, 1) if other.index == stream.index)
        described = _describe_tracks(tracks)
        reading.warn(f"{reading.name}: has {len(tracks)} audio tracks: {described}; track {chosen} is read")


def _warn_of_timestamps(time: Timeline, reading: Reading) -> None:
    if time.missing >= 0.05:
        reading.warn(f"{reading.name}: {time.missing:.1f} s of audio are missing and are replaced by silence")
    if time.jumps:
        more = f" and {len(time.jumps) - 1} more times" if len(time.jumps) > 1 else ""
        at = f"{time.jumps[0]:.1f} s{more}"
        reading.warn(f"{reading.name}: its timestamps jump at {at}: the audio after it is read without a gap")


def _warn_of_truncation(
    time: Timeline, container: av.container.InputContainer, stream: AudioStream, file: WavPart, reading: Reading
) -> None:
    """Warn of a file that was cut: it has less audio than its header states, or no mark of its end."""
    declared = declared_seconds(stream, container)
    if container.format.name == "matroska,webm" and len(container.streams) == 1:  # else the duration of all tracks
        declared = file_seconds(container)
    stated = [seconds for seconds in (declared, file.declared_seconds) if seconds is not None]
    if time.seconds and stated and max(stated) - time.end > _TRUNCATION_SECONDS:
        found = f"its header states {max(stated):.1f} s of audio, but only {time.end:.1f} s were found"
        reading.warn(f"{reading.name}: {found}")
    elif container.format.name == "ogg" and not ends_ogg(file.last):
        reading.warn(f"{reading.name}: its last Ogg page is not marked as the end: the file may be cut off")


def _decoded_packets(
    container: av.container.InputContainer, stream: AudioStream, name: str
) -> Iterator[tuple[Packet[Any] | None, list[AudioFrame] | None]]:
    """Yield packets with their frames; None for frames that cannot be decoded, after which decoding continues."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):  # IndexError: PyAV flushes a stream that appeared while it read the file
            return
        except av.error.FFmpegError:
            yield None, None
            return
        except OSError as error:
            raise AudioError(f"{name}: cannot be read: {error.strerror or error}") from error
        if packet.size > _LARGEST_PACKET_BYTES:
            raise AudioError(f"{name}: has a packet of {packet.size} bytes: expected at most {_LARGEST_PACKET_BYTES}")
        try:
            yield packet, packet.decode()
        except av.error.FFmpegError:
            yield packet, None
