"""Sounds and files that the tests of audio read."""

from __future__ import annotations

import struct
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def tones(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A different tone on each channel, `[C, S]`."""
    time = np.arange(round(seconds * rate)) / rate
    frequencies = 440 * (1 + np.arange(channels))[:, None]
    return (0.5 * np.sin(2 * np.pi * frequencies * time)).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples.T * 32767).astype("<i2").tobytes())
    return path


def write_float_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    data = samples.astype("<f4").tobytes()
    fmt = struct.pack("<HHIIHH", 3, 1, rate, 4 * rate, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path


def write_encoded(
    path: Path,
    codec: str,
    samples: np.ndarray,
    rate: int,
    video: str = "",
    gap: tuple[float, float] = (0, 0),
    layout: str = "",
) -> Path:
    """Encode samples. With `video`, a codec, after a second of pictures; timestamps jump by gap[1] at second gap[0]."""
    with av.open(str(path), "w") as container:
        pictures = add_pictures(container, video) if video else None
        layout = layout or ("mono" if len(samples) == 1 else "stereo")
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000
        if pictures:
            mux_pictures(container, pictures)
        packed = np.ascontiguousarray((samples.T * 32767).astype(np.int16).reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate = rate
        cut = av.AudioResampler(stream.format, stream.layout, rate, frame_size=stream.codec_context.frame_size or 1024)
        position = 0
        for piece in [*cut.resample(frame), *cut.resample(None)]:
            piece.pts = position + round(gap[1] * rate) * (position >= gap[0] * rate)
            piece.time_base = Fraction(1, rate)
            position += piece.samples
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def add_pictures(container: Any, codec: str = "mpeg4") -> Any:
    stream = container.add_stream(codec, rate=25)
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    return stream


def mux_pictures(container: Any, stream: Any) -> None:
    for n in range(25):
        picture = av.VideoFrame(32, 32, "yuv420p")
        picture.pts = n
        container.mux(stream.encode(picture))
    container.mux(stream.encode(None))
