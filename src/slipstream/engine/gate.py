"""Withhold words that the model is not sure of, such as those that it writes in noise."""

from __future__ import annotations

from slipstream.events import PartialWord, Word
from slipstream.model.text import WordEvent

KEPT = 0.7
"""Share of the running mean that a word keeps: the last three words make two thirds of it."""
START_ABOVE = 0.1
"""How far above the threshold the mean starts, so that the first word after a pause may be a little less certain."""
PAUSE_SECONDS = 2.0
"""Time without a word after which the mean starts again."""


class ConfidenceGate:
    """Passes words while the running mean of their confidence is at least `threshold`; 0 passes all.

    Words that a model writes in noise have a low confidence one after the other. In speech, a doubtful word has
    confident ones next to it, and passes. The text of a word that is being written passes if the word will, whatever
    its confidence, so that nothing that was shown is withheld later.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._mean = self._start = threshold + START_ABOVE
        self._last_end = 0.0

    def passes(self, event: WordEvent) -> bool:
        """Return whether the event, the next one of the stream, is to be emitted."""
        if not self._threshold:
            return True
        mean = KEPT * (self._start if event.start - self._last_end > PAUSE_SECONDS else self._mean)
        if not isinstance(event, PartialWord):
            mean += (1 - KEPT) * event.confidence
        if isinstance(event, Word):
            self._mean, self._last_end = mean, event.end
        return mean >= self._threshold
