"""Simulated rooms: impulse responses of boxes by the image source method (pyroomacoustics, extra `rooms`)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.errors import BackendError

MOST_REFLECTIONS = 12
"""Order of the images: higher ones take longer and arrive late and quiet."""


@lru_cache(maxsize=4)
def room_bank(count: int, rate: int) -> tuple[FloatArray, ...]:
    """Impulse responses `[S]` of `count` rooms, always the same; the direct sound is the first sample, at 1.

    Rooms are 2.5 to 8 m wide and 2.2 to 3.5 m high, with a reverberation time of 0.15 to 0.7 s. A response takes about
    10 ms to compute. Raises `BackendError` where pyroomacoustics is not installed.
    """
    rng = np.random.default_rng(0)
    return tuple(_response(rate, rng) for _ in range(count))


def _response(rate: int, rng: np.random.Generator) -> FloatArray:
    try:
        import pyroomacoustics
    except ImportError as error:
        raise BackendError(
            "data.augment_samples.rooms needs the package pyroomacoustics: pip install 'slipstream-stt[rooms]'"
        ) from error
    size = rng.uniform((2.5, 2.5, 2.2), (8.0, 7.0, 3.5))
    absorption, order = pyroomacoustics.inverse_sabine(rng.uniform(0.15, 0.7), size)
    room = pyroomacoustics.ShoeBox(
        size,
        fs=rate,
        materials=pyroomacoustics.Material(absorption),
        max_order=min(order, MOST_REFLECTIONS),
    )
    room.add_source(rng.uniform(0.5, size - 0.5))
    room.add_microphone(rng.uniform(0.5, size - 0.5))
    room.compute_rir()
    response = np.asarray(room.rir[0][0])
    # The first arrival is the direct sound; what precedes it is the travel of the sound and the filter's ringing.
    first = int(np.argmax(np.abs(response) > 0.5 * np.abs(response).max()))
    peak = first + int(np.argmax(np.abs(response[first : first + rate // 1000])))
    direct: FloatArray = (response[peak:] / response[peak]).astype(np.float32)
    return direct
