"""Keeps a word that a flush brought early from being told again when the stream itself comes to it."""

from __future__ import annotations

from dataclasses import replace

from slipstream.events import Word
from slipstream.model.text import WordEvent

SAME_WORD_SECONDS = 0.25
"""A word of the same text that starts within three frames is the same word, timed anew."""
SAME_PLACE_SECONDS = 0.09
"""A word of any text that starts within one frame is the same word, heard anew."""
FORGET_SECONDS = 2.0


class Reconciler:
    """Lets each word through once, in the order of time.

    A flush makes the model write the words it owes as if silence followed; then the stream goes on as if there had been
    no flush, and writes those words once more. What the flush told stands. A word that the flush missed is let through
    when the stream brings it: late, never lost.
    """

    def __init__(self) -> None:
        self._owed: list[Word] = []
        self._owed_after_flush: list[Word] = []
        self._audio_end: float | None = None
        self._last_end = 0.0

    def begin_flush(self, audio_end: float) -> None:
        """What follows is written by a flush: its times stop at `audio_end` seconds, where the silence began."""
        self._owed_after_flush = list(self._owed)
        self._audio_end = audio_end

    def end_flush(self) -> None:
        """What follows is written by the stream, which goes on from where the flush began."""
        self._owed = self._owed_after_flush
        self._audio_end = None

    def pass_on(self, event: WordEvent) -> WordEvent | None:
        """The event as it may be told, its times within the audio and in order; None where it was told before."""
        if (told := self._find(event)) is not None:
            if isinstance(event, Word):
                self._owed.remove(told)
            return None
        start = self._in_order(event.start)
        if not isinstance(event, Word):
            return event if start == event.start else replace(event, start=start)
        if self._audio_end is not None:
            self._owed_after_flush.append(event)
        elif self._owed:
            self._owed = [told for told in self._owed if told.start > event.start - FORGET_SECONDS]
        self._last_end = max(start, self._in_order(event.end))
        if (start, self._last_end) == (event.start, event.end):
            return event
        return replace(event, start=start, end=self._last_end)

    def _in_order(self, time: float) -> float:
        return max(self._last_end, time if self._audio_end is None else min(time, self._audio_end))

    def _find(self, event: WordEvent) -> Word | None:
        if not self._owed:
            return None

        def distance(told: Word) -> float:
            return abs(told.start - event.start)

        def same_text_as(told: Word) -> bool:
            return told.text == event.text if isinstance(event, Word) else told.text.startswith(event.text)

        same_text = [told for told in self._owed if same_text_as(told) and distance(told) < SAME_WORD_SECONDS]
        same_place = [told for told in self._owed if distance(told) < SAME_PLACE_SECONDS]
        return min(same_text or same_place, key=distance, default=None)
