"""Speech as a telephone line or a call delivers it: encoded at a low rate, decoded again (PyAV)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import soxr

from slipstream.arrays import FloatArray

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext

LineName = Literal["mulaw", "alaw", "g722", "amr", "opus"]


@dataclass(frozen=True, slots=True)
class Line:
    """An encoder and a decoder of FFmpeg, their sample rate, and the bit rates to choose from, if there are several."""

    encoder: str
    decoder: str
    rate: int
    sample_format: str
    bit_rates: tuple[int, ...] = ()


LINES: dict[LineName, Line] = {
    "mulaw": Line("pcm_mulaw", "pcm_mulaw", 8000, "s16"),
    "alaw": Line("pcm_alaw", "pcm_alaw", 8000, "s16"),
    "g722": Line("g722", "g722", 16_000, "s16"),
    "amr": Line("libopencore_amrnb", "amrnb", 8000, "s16", (4750, 5900, 7400, 12_200)),
    "opus": Line("libopus", "libopus", 16_000, "s16", (8000, 12_000, 20_000)),
}


def through_line(samples: FloatArray, rate: int, name: LineName, rng: np.random.Generator) -> FloatArray:
    """Encode and decode samples `[S]` as a line does; the result is as long, and not later than the input.

    Args:
        rate: of the samples, in and out.
        name: of the line; its bit rate is drawn.
    """
    line = LINES[name]
    narrow = soxr.resample(samples, rate, line.rate)
    bit_rate = int(rng.choice(line.bit_rates)) if line.bit_rates else None
    decoded = _transcode(np.round(np.clip(narrow, -1, 1) * 32767).astype(np.int16), line, bit_rate)
    late = _delay(narrow, decoded)
    wide = soxr.resample(decoded[late:], line.rate, rate).astype(np.float32)[: len(samples)]
    heard: FloatArray = np.pad(wide, (0, len(samples) - len(wide)))
    return heard


def _transcode(samples: np.ndarray, line: Line, bit_rate: int | None) -> FloatArray:
    import av  # not needed for rows without lines

    encoder = cast("AudioCodecContext", av.CodecContext.create(line.encoder, "w"))
    decoder = cast("AudioCodecContext", av.CodecContext.create(line.decoder, "r"))
    for context in (encoder, decoder):
        context.sample_rate, context.layout = line.rate, "mono"
    encoder.format, encoder.time_base = line.sample_format, Fraction(1, line.rate)
    if bit_rate is not None:
        encoder.bit_rate = bit_rate
    encoder.open()
    size = encoder.frame_size or 320
    samples = np.pad(samples, (0, -len(samples) % size + 4 * size))  # the rest of the last frame, and the delay
    packets = []
    for start in range(0, len(samples), size):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + size], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = line.rate, start, Fraction(1, line.rate)
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder.extradata = encoder.extradata
    resampler = av.AudioResampler(format="flt", layout="mono", rate=line.rate)
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    decoded: FloatArray = np.concatenate([*parts, np.zeros(size, np.float32)]).astype(np.float32)
    return decoded


def _delay(sent: FloatArray, heard: FloatArray) -> int:
    """By how many samples the line is late: where the two agree best, within 30 ms."""
    size = 1 << (len(sent) + len(heard) - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.fft.rfft(sent, size).conj(), size)
    return int(np.argmax(product[:480]))
