"""The text-to-speech model of a server, and the voices that its clients may name."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from slipstream.dialects.models import DEFAULT_VOICE, SpeechInfo
from slipstream.engine.reading import SpeechEvent
from slipstream.engine.speech import SpeechSession
from slipstream.errors import AudioError, CheckpointError, ConfigError
from slipstream.model.speech import Voice
from slipstream.speaker import Speaker

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_@ +.-]+(/[A-Za-z0-9_@ +.-]+)*")
"""A name within the folder of voices. Clients may not name other files of this machine."""


class AnySession(Protocol):
    """A session in this process or another. Its methods are those of `SpeechSession`."""

    def feed(self, text: str) -> None: ...

    def flush(self) -> None: ...

    def end(self) -> None: ...

    def cancel(self) -> None: ...

    def poll(self) -> list[SpeechEvent]: ...

    @property
    def ended(self) -> bool: ...


class AnySpeaker(Protocol):
    """A model in this process or another. What keeps a session from opening is raised by `open`, or by its `poll`."""

    @property
    def info(self) -> SpeechInfo: ...

    @property
    def sample_rate(self) -> int: ...

    def voice(self, name: str | None) -> Voice | None: ...

    def open(self, voice: Voice | None, wake: Callable[[], None]) -> AnySession: ...


@dataclass(frozen=True)
class ServedSpeaker:
    """A speaker for clients, in this process.

    Args:
        speaker: The model.
        default_voice: The voice of a request that names none, or an unknown one; None refuses the latter.
        languages: The languages that it reports to clients.
    """

    speaker: Speaker
    default_voice: str | None = None
    languages: tuple[str, ...] = ("en",)

    @property
    def info(self) -> SpeechInfo:
        """What clients see of the model."""
        names = self.speaker.voice_names() or ([self.default_voice] if self.default_voice else [])
        return SpeechInfo(self.speaker.model, self.sample_rate, tuple(names), self.languages)

    @property
    def sample_rate(self) -> int:
        """Of the audio, in Hz."""
        return self.speaker.sample_rate

    def voice(self, name: str | None) -> Voice | None:
        """Return the voice that a client names. It may read files.

        Raises:
            ConfigError: There is none of this name, and no default; or its recording cannot be used. The message names
                no file of the server.
        """
        if name == DEFAULT_VOICE:
            name = None
        if name and _NAME.fullmatch(name) and ".." not in name:
            try:
                return self.speaker.named_voice(name)
            except CheckpointError:
                pass
            except AudioError as error:
                logger.warning("the voice %s cannot be used: %s", name, error)  # the error names the file's path
                raise ConfigError(f"the recording of the voice {name!r:.80} is damaged or too short") from error
        if self.default_voice is not None:
            return self.speaker.voice(self.default_voice)
        if name:
            raise ConfigError(f"unknown voice {name!r:.80}: name one of this server's folder of voices")
        return None

    def open(self, voice: Voice | None, wake: Callable[[], None]) -> SpeechSession:
        """Open a session. Raises `Overloaded` if too many wait."""
        return self.speaker.open(voice, wake=wake)
