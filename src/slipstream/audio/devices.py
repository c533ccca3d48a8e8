"""Microphones."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slipstream.arrays import FloatArray
from slipstream.audio.resample import Resampler
from slipstream.audio.samples import logger
from slipstream.errors import AudioError

if TYPE_CHECKING:
    from types import ModuleType

_MICROPHONE_BLOCKS_PER_SECOND = 25
_LONGEST_BACKLOG_SECONDS = 60


@dataclass(frozen=True, slots=True)
class InputDevice:
    """A microphone: its number and name (either selects it), and the rate it prefers, in Hz."""

    index: int
    name: str
    channels: int
    sample_rate: int
    is_default: bool


def input_devices() -> list[InputDevice]:
    """Return the microphones.

    Raises:
        AudioError: The extra `mic` or PortAudio is not installed.

    Example:
        >>> [device.name for device in input_devices()]
    """
    sounddevice = _sounddevice()
    default = sounddevice.default.device[0]
    return [
        InputDevice(
            index=device["index"],
            name=device["name"],
            channels=device["max_input_channels"],
            sample_rate=round(device["default_samplerate"]),
            is_default=device["index"] == default,
        )
        for device in sounddevice.query_devices()
        if device["max_input_channels"] > 0
    ]


def microphone(device: int | str | None = None) -> Iterator[FloatArray]:
    """Record from a microphone until the iterator is closed.

    Args:
        device: Number or part of the name, as in `input_devices`; None is the system's default.

    Yields:
        Pieces `[1, S]` at `SAMPLE_RATE` (24 kHz).

    Raises:
        AudioError: There is no such device, or the reader is more than a minute behind.

    Example:
        >>> for event in transcriber.stream(microphone(), 24_000):
        ...     print(event)
    """
    sounddevice = _sounddevice()
    try:
        rate = round(sounddevice.query_devices(device, "input")["default_samplerate"])
        blocks: queue.Queue[FloatArray] = queue.Queue(_LONGEST_BACKLOG_SECONDS * _MICROPHONE_BLOCKS_PER_SECOND)
        lost = False

        def keep(block_SC: FloatArray, frames: int, time: object, status: Any) -> None:
            nonlocal lost
            if status.input_overflow:
                logger.warning("the microphone lost audio: this machine is too busy to record it")
            try:
                blocks.put_nowait(block_SC.T.copy())
            except queue.Full:
                lost = True

        resampler = Resampler(rate)
        with sounddevice.InputStream(
            samplerate=rate,
            blocksize=rate // _MICROPHONE_BLOCKS_PER_SECOND,
            device=device,
            channels=1,
            dtype="float32",
            callback=keep,
        ):
            while not lost:
                yield resampler.push(blocks.get())
    except (ValueError, sounddevice.PortAudioError) as error:
        raise AudioError(f"no microphone available: {error}") from error
    raise AudioError(f"{_LONGEST_BACKLOG_SECONDS} s behind the microphone: this model is too slow on this machine")


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ImportError as error:
        raise AudioError('recording needs the extra "mic": pip install "slipstream-stt[mic]"') from error
    except OSError as error:
        raise AudioError(f"recording needs PortAudio (Debian, Ubuntu: apt install libportaudio2): {error}") from error
    module: ModuleType = sounddevice
    return module
