"""Drop words that a flush has already emitted when the stream itself writes them."""

from __future__ import annotations

from dataclasses import replace

from slipstream.events import Word
from slipstream.model.text import WordEvent

SAME_WORD_SECONDS = 0.25
"""A word with the same text that starts within three frames is the same word with another time."""
SAME_PLACE_SECONDS = 0.09
"""A word with another text that starts within one frame is the same word, recognised differently."""
FORGET_SECONDS = 2.0


class Reconciler:
    """Passes each word once, in the order of time.

    A flush makes the model write its pending words as if silence followed. Then the stream continues as if there had
    been no flush, and writes those words again. The words of the flush are kept. A word that the flush missed passes
    when the stream writes it: late, but not lost.
    """

    def __init__(self) -> None:
        self._repeated: list[Word] = []
        self._repeated_after_flush: list[Word] = []
        self._audio_end: float | None = None
        self._last_end = 0.0

    def begin_flush(self, audio_end: float) -> None:
        """Begin a flush: times are limited to `audio_end` seconds, where its silence begins."""
        self._repeated_after_flush = list(self._repeated)
        self._audio_end = audio_end

    def end_flush(self) -> None:
        """End a flush: the stream continues from where the flush began."""
        self._repeated = self._repeated_after_flush
        self._audio_end = None

    def pass_on(self, event: WordEvent) -> WordEvent | None:
        """Return the event with its times within the audio and in order, or None if it was emitted before."""
        if self._repeated and (emitted := self._find(event)) is not None:
            if isinstance(event, Word):
                self._repeated.remove(emitted)
            return None
        start = self._in_order(event.start)
        if not isinstance(event, Word):
            return event if start == event.start else replace(event, start=start)
        if self._audio_end is not None:
            self._repeated_after_flush.append(event)
        elif self._repeated:
            self._repeated = [emitted for emitted in self._repeated if emitted.start > event.start - FORGET_SECONDS]
        self._last_end = max(start, self._in_order(event.end))
        if (start, self._last_end) == (event.start, event.end):
            return event
        return replace(event, start=start, end=self._last_end)

    def _in_order(self, time: float) -> float:
        return max(self._last_end, time if self._audio_end is None else min(time, self._audio_end))

    def _find(self, event: WordEvent) -> Word | None:
        def distance(emitted: Word) -> float:
            return abs(emitted.start - event.start)

        def same_text_as(emitted: Word) -> bool:
            return emitted.text == event.text if isinstance(event, Word) else emitted.text.startswith(event.text)

        same_text = [
            emitted for emitted in self._repeated if same_text_as(emitted) and distance(emitted) < SAME_WORD_SECONDS
        ]
        same_place = [emitted for emitted in self._repeated if distance(emitted) < SAME_PLACE_SECONDS]
        return min(same_text or same_place, key=distance, default=None)
