"""Turns: find where a speaker has finished, by the pause heads or, for models without them, by the loudness."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slipstream.errors import ConfigError
from slipstream.events import Turn, Word
from slipstream.model.config import END_OF_TURN_ABOVE, STTConfig


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """When a turn ends.

    With pause heads, it ends once the probability of head `head` exceeds `end_above`. Without them, it ends after
    `quiet_seconds` without voice, or after `blank_seconds` without text, for noisy recordings.

    Args:
        head: The pause head; head 2 predicts that no new word follows within 2 s.
        end_above: Probability above which a turn ends.
        resume_below: Probability below which the next turn begins.
        warmup_frames: Frames at the start of a stream in which no turn ends.
        quiet_seconds: Silence that ends a turn, for models without pause heads.
        blank_seconds: Time without text that ends a turn, for models without pause heads.

    Raises:
        ConfigError: A value is out of its range.
    """

    head: int = 2
    end_above: float = END_OF_TURN_ABOVE
    resume_below: float = 0.4
    warmup_frames: int = 12
    quiet_seconds: float = 0.8
    blank_seconds: float = 3.0

    @classmethod
    def of(cls, config: STTConfig) -> TurnOptions:
        """Return the options of a model: its threshold, and its last pause head if it has fewer than three."""
        usual = cls(end_above=config.end_of_turn_above)
        return replace(usual, head=min(usual.head, max(0, config.lm.pause_heads - 1)))

    def __post_init__(self) -> None:
        if not 0 <= self.resume_below <= self.end_above <= 1:
            raise ConfigError(
                f"resume_below={self.resume_below}, end_above={self.end_above}: "
                "both must be within [0, 1], and resume_below at most end_above"
            )
        if self.head < 0 or self.warmup_frames < 0:
            raise ConfigError(f"head={self.head}, warmup_frames={self.warmup_frames}: both must be at least 0")
        if min(self.quiet_seconds, self.blank_seconds) <= 0:
            raise ConfigError(
                f"quiet_seconds={self.quiet_seconds}, blank_seconds={self.blank_seconds}: both must be above 0"
            )


class VoiceLevel:
    """Finds frames louder than the background. Its estimate of the background falls immediately and rises slowly."""

    FLOOR_DB = -60.0  # quieter than any room: lower levels carry no information
    ABOVE_FLOOR_DB = 12.0  # speech is at least 15 dB above the background of a usable recording
    RISE_DB = 0.1  # per frame, 1.25 dB/s: slow compared with a sentence, fast enough for a fan that starts

    def __init__(self) -> None:
        self._floor = self.FLOOR_DB

    def push(self, mean_square: float) -> bool:
        """Return whether the next frame has voice, by the mean of its squared samples."""
        level = 10 * math.log10(mean_square) if mean_square > 1e-12 else -120.0
        self._floor = max(self.FLOOR_DB, min(level, self._floor + self.RISE_DB))
        return level > self._floor + self.ABOVE_FLOOR_DB


class TurnDetector:
    """Finds the frames where turns end. `delay_frames`: how far the text is behind the audio."""

    VOICED_FRAMES = 3  # in a row: a click or a breath is not a turn

    def __init__(self, options: TurnOptions, delay_frames: int, frame_rate: float) -> None:
        self._options = options
        self._delay = delay_frames
        self._quiet_limit = round(options.quiet_seconds * frame_rate)
        self._blank_limit = round(options.blank_seconds * frame_rate)
        self._frame = 0
        self._speaking = False
        self._ended_frame = 0
        self._voiced = self._quiet = self._blank = 0

    def push(self, pause_H: Sequence[float], voiced: bool, word_frame: int | None) -> bool:
        """Process the next frame.

        Args:
            pause_H: Probabilities of the pause heads; empty for a model without heads.
            voiced: Whether the frame has voice.
            word_frame: The audio frame where the word that is being written started, if any.

        Returns:
            Whether a turn ends here.

        Raises:
            ConfigError: The model does not have the pause head of the options.
        """
        self._frame += 1
        # A word spoken before the last end of turn comes late, and does not begin another turn.
        spoke = word_frame is not None and word_frame >= self._ended_frame
        ends = self._by_heads(pause_H, spoke) if pause_H else self._by_sound(voiced, spoke)
        if ends:
            self._speaking = False
            self._ended_frame = self._frame
        return ends

    def _by_heads(self, pause_H: Sequence[float], spoke: bool) -> bool:
        head = self._options.head
        if head >= len(pause_H):
            raise ConfigError(f"head={head}: the model has pause heads 0 to {len(pause_H) - 1}")
        if spoke:
            self._speaking = True
        if self._frame <= self._options.warmup_frames:
            return False
        if pause_H[head] < self._options.resume_below:
            self._speaking = True
        return self._speaking and pause_H[head] > self._options.end_above

    def _by_sound(self, voiced: bool, spoke: bool) -> bool:
        self._voiced = self._voiced + 1 if voiced else 0
        self._quiet = 0 if voiced else self._quiet + 1
        self._blank = 0 if spoke else self._blank + 1
        if not self._speaking and (spoke or self._voiced >= self.VOICED_FRAMES):
            self._speaking = True
            self._blank = -self._delay
        return self._speaking and (self._quiet >= self._quiet_limit or self._blank >= self._blank_limit)


class TurnBuilder:
    """Groups words into turns. A turn has the words that start before its end was found."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque()
        self._first: Word | None = None
        self._last: Word | None = None

    @property
    def ending(self) -> bool:
        """Whether words of an ended turn may still come."""
        return bool(self._ends)

    def end(self, time: float) -> None:
        """End a turn at `time`; words that started before it may still come."""
        self._ends.append(time)

    def add(self, word: Word) -> list[Turn]:
        """Add the next word. Returns the turns that end before it."""
        turns = self.settle(word.start)
        self._first = self._first or word
        self._last = word
        return turns

    def settle(self, time: float) -> list[Turn]:
        """Return the turns that are complete when no more words start before `time`."""
        turns: list[Turn] = []
        while self._ends and self._ends[0] <= time:
            self._ends.popleft()
            turns += self.flush()
        return turns

    def flush(self) -> list[Turn]:
        """Return the current turn, if it has words."""
        if self._first is None or self._last is None:
            return []
        turn = Turn(self._first.start, self._last.end)
        self._first = self._last = None
        return [turn]
