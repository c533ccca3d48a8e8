"""What is final of the text of a stream over several connections."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from slipstream.events import History, PartialWord, Turn, Word

WORD_TAIL_SECONDS = 0.5
"""A word may sound this much longer than its end states: audio is never cut there."""
SAME_START_SECONDS = 0.16
"""A word with the same text that starts this close to a final word is that word again."""


class FinalText:
    """What is final of a session's text, and where the audio of the next connection starts.

    Attributes:
        settled: No word without final text starts before this, in seconds.
    """

    def __init__(self, context_seconds: float) -> None:
        self.frame_seconds = 0.08
        self._context = context_seconds
        self._words: deque[Word] = deque()  # the last final words
        self.settled = 0.0
        self._open = False  # whether a word is being written
        self._repeats: Word | None = None  # the last word that was final when the connection began
        self._turn_start: float | None = None
        self._history: deque[History] = deque()  # the text of the frames from the cut on

    @property
    def first_frame(self) -> int:
        """Number of the frame at the cut."""
        return round(self.cut / self.frame_seconds)

    @property
    def history(self) -> tuple[str, ...]:
        """The model's text of the frames from the one before the cut on."""
        first = self.first_frame
        return tuple(piece.text for piece in self._history if piece.end >= first)

    def keep(self, piece: History) -> None:
        """Keep the model's text, instead of what another model has written for later frames."""
        while self._history and self._history[-1].end >= piece.end:
            self._history.pop()
        self._history.append(piece)
        first = self.first_frame
        while self._history[0].end < first:
            self._history.popleft()

    def forget(self) -> None:
        """Forget the model's text: the model was reset."""
        self._history.clear()

    @property
    def cut(self) -> float:
        """The start of a word or a frame of silence, at least the context before the text that is not final."""
        cut = max(0.0, self.settled - self._context)
        following = cut + WORD_TAIL_SECONDS
        for word in reversed(self._words):
            if word.start < cut < min(word.end + WORD_TAIL_SECONDS, following):
                cut = word.start
                break
            following = word.start
        return int(cut / self.frame_seconds + 1e-6) * self.frame_seconds

    def begin(self) -> None:
        """Begin a connection that sends audio again."""
        self._open = False
        self._repeats = self._words[-1] if self._words else None

    def settle(self, time: float) -> None:
        """All text of the audio before `time` is written, except for a word that is being written."""
        if not self._open:
            self._settle(time)

    def partial(self, partial: PartialWord) -> PartialWord | None:
        """Return a word that is being written, unless it repeats a final one."""
        self._open = True
        last = self._repeats
        return None if last is not None and partial.start < last.end - self.frame_seconds / 2 else partial

    def word(self, word: Word) -> Word | None:
        """Return a word, unless it repeats a final one."""
        self._open = False
        if (last := self._repeats) is not None:
            same = word.text == last.text and abs(word.start - last.start) <= SAME_START_SECONDS
            if same or (word.start + word.end) / 2 < last.end:
                return None
            self._repeats = None
        self._words.append(word)
        while self._words[0].end + WORD_TAIL_SECONDS < self.cut and len(self._words) > 1:
            self._words.popleft()
        self._settle(word.end)
        if self._turn_start is None:
            self._turn_start = word.start
        return word

    def turn(self, turn: Turn) -> Turn | None:
        """Return a turn from its first new word on; None if it has no word that is new."""
        if self._turn_start is None or turn.end <= self._turn_start:
            return None
        turn, self._turn_start = replace(turn, start=self._turn_start), None
        return turn

    def _settle(self, time: float) -> None:
        self.settled = max(self.settled, time)
