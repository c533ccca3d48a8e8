"""The text of a transcription session as items: one per turn, or per commit of the client."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from slipstream.events import OpenWord, Word


class Boundary(Enum):
    """What ends a segment of the audio."""

    COMMIT = auto()
    CLEAR = auto()


@dataclass(slots=True)
class Item:
    """One item.

    Args:
        id: Of the item, in all its events.
        start: Of its audio, in seconds.
        end: Of its audio, once it is known.
        committed: Whether `input_audio_buffer.committed` has been sent.
        by_turn: Whether the end of a turn committed it.
        speaking: Whether the start of its speech has been sent, and its end has not.
        words: Its words so far.
    """

    id: str
    start: float
    end: float | None = None
    committed: bool = False
    by_turn: bool = False
    speaking: bool = False
    words: list[Word] = field(default_factory=list)
    _begun: bool = False
    _open_text: str = ""
    _open_start: float | None = None

    def add(self, event: OpenWord | Word) -> str:
        """Add a word, or its text before its end is known. Returns the text that is new."""
        text, continues = event.text, event.start == self._open_start
        if continues:
            text = text.removeprefix(self._open_text)
        elif self._begun:
            text = f" {text}"
        self._begun = True
        if isinstance(event, Word):
            self.words.append(event)
            self._open_start = None
        else:
            self._open_text, self._open_start = event.text, event.start
        return text

    @property
    def transcript(self) -> str:
        """Its text so far."""
        return " ".join(word.text for word in self.words)


@dataclass(slots=True)
class Segment:
    """The audio between two commits or clears of the client, in the order of the audio.

    Args:
        start: Of its audio, in seconds.
        item: The item that the next text belongs to.
        boundary: What ends it, once that is known.
        end: Of its audio, in seconds.
    """

    start: float = 0.0
    item: Item | None = None
    boundary: Boundary | None = None
    end: float = 0.0

    @property
    def dropped(self) -> bool:
        """Whether its text is dropped: the client has cleared its audio, except for a turn that had ended before."""
        return self.boundary is Boundary.CLEAR and not (self.item is not None and self.item.committed)


def logprob_fields(text: str, confidence: float) -> dict[str, Any]:
    """Return the log-probability of a word in OpenAI's format, whose tokens are words here."""
    return {"token": text, "bytes": list(text.encode()), "logprob": round(math.log(max(confidence, 1e-10)), 5)}
