"""The text-to-speech model of a server, and the voices that its clients may name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.engine.speech import SpeechSession
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.speech import Voice
from slipstream.speaker import Speaker

_NAME = re.compile(r"[A-Za-z0-9_@ +.-]+(/[A-Za-z0-9_@ +.-]+)*")
"""A name within the folder of voices. Clients may not name other files of this machine."""


@dataclass(frozen=True)
class ServedSpeaker:
    """A speaker for clients.

    Args:
        speaker: The model.
        default_voice: The voice of a request that names none, or one that there is not; None refuses the latter.
    """

    speaker: Speaker
    default_voice: str | None = None

    @property
    def sample_rate(self) -> int:
        """Of the audio, in Hz."""
        return self.speaker.sample_rate

    def voice(self, name: str | None) -> Voice | None:
        """Return the voice that a client names. It may read files.

        Raises:
            ConfigError: There is none of this name, and no default.
        """
        if name and _NAME.fullmatch(name) and ".." not in name:
            try:
                return self.speaker.named_voice(name)
            except CheckpointError:
                pass
        if self.default_voice is not None:
            return self.speaker.voice(self.default_voice)
        if name:
            raise ConfigError(f"unknown voice {name!r:.80}: name one of this server's folder of voices")
        return None

    def embedding(self, numbers: list[float], shape: list[int]) -> Voice:
        """Return a voice that a client sends.

        Raises:
            ConfigError: The shape is not that of a voice.
        """
        if len(shape) != 3 or shape[0] != 1 or len(numbers) != shape[1] * shape[2]:
            raise ConfigError(f"an embedding of shape {shape} and {len(numbers)} numbers: expected [1, width, frames]")
        array: FloatArray = np.asarray(numbers, np.float32).reshape(shape[1:])
        if not np.isfinite(array).all():
            raise ConfigError("the numbers of an embedding must be finite")
        return Voice("of the client", embeddings=(array,))

    def open(self, voice: Voice | None, wake: Callable[[], None]) -> SpeechSession:
        """Open a session. Raises `Overloaded` if too many wait."""
        return self.speaker.open(voice, wake=wake)
