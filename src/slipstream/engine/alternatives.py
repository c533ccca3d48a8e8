"""Other texts for the words of a session, from the hypotheses that its search has given up."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from slipstream.events import Alternative, Word
from slipstream.hints.search import Rival
from slipstream.model.text import WordEvent

SAME_PLACE_SECONDS = 0.17
"""Words that start within two frames are at the same place."""
KEEP_SECONDS = 3.0


class Rivals:
    """Words of other hypotheses, until the word at their place is complete.

    Args:
        most: Alternatives of a word; 0 keeps nothing.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: dict[tuple[float, str], float] = {}  # nats below the best, by start in seconds and text

    def note(self, rivals: Iterable[tuple[float, Rival]]) -> None:
        """Add rivals, each with its start in seconds. A later judgement of the same one replaces the earlier."""
        if self._most:
            self._found.update({(start, rival.text): rival.nats for start, rival in rivals})

    def attach(self, events: Sequence[WordEvent]) -> Sequence[WordEvent]:
        """Return the events, with alternatives for complete words."""
        if not self._most:
            return events
        return [self._with_alternatives(event) if isinstance(event, Word) else event for event in events]

    def copy(self) -> Rivals:
        """Return an independent copy."""
        other = copy.copy(self)
        other._found = dict(self._found)
        return other

    def _with_alternatives(self, word: Word) -> Word:
        nats: dict[str, float] = {}
        for (start, text), below in self._found.items():
            if abs(start - word.start) < SAME_PLACE_SECONDS and text != word.text:
                nats[text] = min(below, nats.get(text, math.inf))
        self._found = {key: below for key, below in self._found.items() if key[0] > word.start - KEEP_SECONDS}
        total = 1 + sum(math.exp(-below) for below in nats.values())
        best = sorted(nats, key=lambda text: nats[text])[: self._most]
        return replace(word, alternatives=tuple(Alternative(text, math.exp(-nats[text]) / total) for text in best))
