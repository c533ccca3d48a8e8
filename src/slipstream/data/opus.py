"""Speech as Opus in memory: a pack of it takes a twelfth of the space, and is decoded when it is drawn."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray

if TYPE_CHECKING:
    from av.audio.stream import AudioStream

BIT_RATE = 32_000


def encode_opus(samples: npt.NDArray[np.int16], rate: int, bit_rate: int = BIT_RATE) -> bytes:
    """Encode samples `[S]` at 8, 12, 16, 24 or 48 kHz as an Ogg file."""
    import av  # not needed to read packs of another coding

    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = cast("AudioStream", container.add_stream("libopus", rate=rate, layout="mono"))
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


def decode_opus(data: bytes, rate: int, length: int) -> FloatArray:
    """Decode `length` samples `[S]` within [-32768, 32767], as a pack of samples holds them."""
    from slipstream.audio import load

    samples = load(io.BytesIO(data), rate)[:length] * np.float32(32767)
    whole: FloatArray = np.pad(samples, (0, length - len(samples)))
    return whole
