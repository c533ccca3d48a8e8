"""Decode files and pipes as streams."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from slipstream.audio.channels import Channels
from slipstream.audio.container import (
    GUESSED_DURATION,
    audio_stream,
    container_pieces,
    declared_seconds,
    open_container,
)
from slipstream.audio.pcm import RawFormat, raw_pieces
from slipstream.audio.resample import resampled
from slipstream.audio.samples import SAMPLE_RATE
from slipstream.audio.source import Source, opened, source_name
from slipstream.types import FloatArray


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file's header says: `duration` in seconds (None where it does not say), `sample_rate` in Hz."""

    duration: float | None
    sample_rate: int
    channels: int
    codec: str


def decode(
    source: Source,
    *,
    raw: RawFormat | None = None,
    channels: Channels = "mix",
    sample_rate: int = SAMPLE_RATE,
    max_gap_seconds: float = math.inf,
) -> Iterator[FloatArray]:
    """Decode a file, or a binary file object such as a pipe, as a stream.

    Yields `[C, S]` pieces of any length at `sample_rate`; C is 1 for `mix`, the source's channels for `separate`.
    `raw` declares the format of audio without a header. What is damaged or missing is left out, or replaced by silence
    where the file's timestamps tell how long it was, with a warning in the log.
    `max_gap_seconds`: the most silence that may be inserted in total.
    Raises `AudioError` when there is nothing to read, no audio in it, a sample that is not a finite number, or more
    silence to insert than `max_gap_seconds`.
    """
    name = source_name(source)
    with opened(source, name) as file:
        pieces = raw_pieces(file, raw, name) if raw else container_pieces(file, name, max_gap_seconds)
        yield from resampled(pieces, channels, sample_rate, name)


def load(source: Source, sample_rate: int = SAMPLE_RATE) -> FloatArray:
    """Decode a whole file to one mono array `[S]` at `sample_rate`. Raises as `decode` does."""
    return np.concatenate([piece[0] for piece in decode(source, sample_rate=sample_rate)])


def probe(source: Source) -> AudioInfo:
    """Read a file's header only. Raises `AudioError` when there is no audio in it."""
    name = source_name(source)
    with opened(source, name) as file, open_container(file, name) as container:
        stream = audio_stream(container, name)
        duration = declared_seconds(stream, container)
        if duration is None and container.duration and container.format.name not in GUESSED_DURATION:
            duration = container.duration / 1_000_000
        return AudioInfo(
            duration=duration,
            sample_rate=stream.codec_context.sample_rate,
            channels=stream.codec_context.channels,
            codec=stream.codec_context.name,
        )
