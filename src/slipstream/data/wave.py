"""Write audio files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import SAMPLE_RATE


def write_wave(path: Path, samples: FloatArray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write mono 16-bit samples."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
