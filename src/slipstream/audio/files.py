"""Decode files and pipes as streams."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio.channels import Channels
from slipstream.audio.container import (
    Reading,
    audio_stream,
    container_pieces,
    declared_seconds,
    file_seconds,
    open_container,
)
from slipstream.audio.convert import Converter, warn_of_cancellation
from slipstream.audio.pcm import RawFormat, raw_pieces
from slipstream.audio.samples import SAMPLE_RATE, Piece, Warn, check_finite, log_warning
from slipstream.audio.source import Source, check_file, is_pipe, opened, source_name
from slipstream.errors import AudioError


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """The header of a file: `duration` in seconds (None if the header has none), `sample_rate` in Hz."""

    duration: float | None
    sample_rate: int
    channels: int
    codec: str


def decode(
    source: Source,
    *,
    raw: RawFormat | None = None,
    channels: Channels = "mix",
    track: int | None = None,
    sample_rate: int = SAMPLE_RATE,
    max_gap_seconds: float = math.inf,
    warn: Warn = log_warning,
) -> Iterator[FloatArray]:
    """Decode a file, or a binary file object such as a pipe, as a stream.

    Damaged audio is left out. Missing audio is replaced by silence where the file's timestamps give its length. There
    is a warning for both, for a file that is cut off, for several tracks when `track` is None, and for stereo in
    opposite phase.

    Args:
        source: A path, or a binary file object. A pipe is read once, from its current position.
        raw: The format of audio without a header.
        channels: `mix` for one channel, `separate` for those of the source.
        track: The audio track to read, counted from 1. None is the one that players choose.
        sample_rate: Of the output, in Hz.
        max_gap_seconds: The most silence that may be inserted in total.
        warn: Called with each warning; by default they are logged.

    Returns:
        Pieces `[C, S]` of any length.

    Raises:
        AudioError: There is nothing to read, no audio in it, no such track, a sample that is not a finite number, more
            silence to insert than `max_gap_seconds`, or a format that must seek in a pipe too long to be copied to
            disk.

    Example:
        >>> for audio_CS in decode("talk.mp3", channels="separate"):
        ...     print(audio_CS.shape)
    """
    name = source_name(source)
    if raw and track is not None:
        raise AudioError(f"{name}: raw audio has no tracks: leave out track")
    with opened(source, name) as file:
        if raw:
            pieces = raw_pieces(file, raw, name, warn)
        else:
            pieces = container_pieces(file, Reading(name, track, max_gap_seconds, warn))
        yield from _resampled(pieces, channels, sample_rate, name, warn)


def load(source: Source, sample_rate: int = SAMPLE_RATE) -> FloatArray:
    """Decode a whole file to one array.

    Args:
        source: A path, or a binary file object.
        sample_rate: Of the output, in Hz.

    Returns:
        Mono samples `[S]`, float32 within [-1, 1].

    Raises:
        AudioError: As for `decode`.

    Example:
        >>> samples = load("talk.mp3", sample_rate=16_000)
    """
    return np.concatenate([piece[0] for piece in decode(source, sample_rate=sample_rate)])


def probe(source: Source, *, track: int | None = None) -> AudioInfo:
    """Read the header of a file; a file object keeps its position.

    Args:
        source: A path, or a binary file object.
        track: The audio track, counted from 1. None is the one that players choose.

    Returns:
        Length, sample rate, channels and codec.

    Raises:
        AudioError: The file has no audio or no such track, or is a pipe, whose audio would be lost.

    Example:
        >>> probe("talk.mp3").duration
    """
    name = source_name(source)
    if not isinstance(source, (str, os.PathLike)):
        check_file(source, name)
    if is_pipe(source):
        raise AudioError(f"{name}: is a pipe, and reading its header would consume it: decode it, or save it to a file")
    with opened(source, name) as file:
        position = file.tell()
        try:
            with open_container(file, name) as container:
                stream = audio_stream(container, name, track)
                duration = declared_seconds(stream, container)
                return AudioInfo(
                    duration=file_seconds(container) if duration is None else duration,
                    sample_rate=stream.codec_context.sample_rate,
                    channels=stream.codec_context.channels,
                    codec=stream.codec_context.name,
                )
        finally:
            file.seek(position)


def _resampled(
    pieces: Iterable[Piece], channels: Channels, sample_rate: int, name: str, warn: Warn
) -> Iterator[FloatArray]:
    """Mix and resample a stream whose format may change."""
    converter: Converter | None = None
    seconds = cancelled = 0.0
    for piece in pieces:
        if not piece.samples_CS.shape[1]:
            continue
        check_finite(piece.samples_CS, name, seconds, piece.rate)
        seconds += piece.samples_CS.shape[1] / piece.rate
        if converter is None or (piece.rate, piece.weights) != (converter.from_rate, converter.weights):
            if converter is not None:
                if channels == "separate" and len(piece.weights) != len(converter.weights):
                    raise AudioError(
                        f"{name}: has {len(converter.weights)} channels, then {len(piece.weights)}: mix them"
                    )
                yield converter.flush()
                cancelled += converter.cancelled_seconds
            converter = Converter(piece.rate, piece.weights, sample_rate, channels)
        if (ready := converter.push(piece.samples_CS)).size:
            yield ready
    if converter is None:
        raise AudioError(f"{name}: holds no audio samples")
    yield converter.flush()
    warn_of_cancellation(name, cancelled + converter.cancelled_seconds, warn)
