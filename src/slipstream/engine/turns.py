"""Turns: where a speaker has finished, from pause probabilities or, for models without pause heads, from the sound."""

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

    With pause heads: once head number `head` (2 is "no new word in the next 2 s") says more than `end_above`; the next
    turn can end after it has said less than `resume_below`. The first `warmup_frames` of a stream are not judged.
    Without them: after `quiet_seconds` without voice, or `blank_seconds` without text where noise hides the silence.
    Raises `ConfigError` for values that make no sense.
    """

    head: int = 2
    end_above: float = END_OF_TURN_ABOVE
    resume_below: float = 0.4
    warmup_frames: int = 12
    quiet_seconds: float = 0.8
    blank_seconds: float = 3.0

    @classmethod
    def of(cls, config: STTConfig) -> TurnOptions:
        """The options of a model: its own threshold, and its last pause head where it has fewer than three."""
        usual = cls(end_above=config.end_of_turn_above)
        return replace(usual, head=min(usual.head, max(0, config.lm.pause_heads - 1)))

    def __post_init__(self) -> None:
        if not 0 <= self.resume_below <= self.end_above <= 1:
            raise ConfigError(
                f"resume_below={self.resume_below} and end_above={self.end_above} are probabilities, "
                "and the first must not be above the second"
            )
        if self.head < 0 or self.warmup_frames < 0:
            raise ConfigError(f"head={self.head} and warmup_frames={self.warmup_frames} must not be negative")
        if min(self.quiet_seconds, self.blank_seconds) <= 0:
            raise ConfigError(
                f"quiet_seconds={self.quiet_seconds} and blank_seconds={self.blank_seconds} must be above 0"
            )


class VoiceLevel:
    """Whether a frame is louder than the background, which is followed: at once downwards, slowly upwards."""

    FLOOR_DB = -60.0  # quieter than any room: below it a level says nothing
    ABOVE_FLOOR_DB = 12.0  # speech stands out of a usable recording by 15 dB and more
    RISE_DB = 0.1  # a frame; 1.25 dB/s: slow against a sentence, fast against a fan that starts

    def __init__(self) -> None:
        self._floor = self.FLOOR_DB

    def push(self, mean_square: float) -> bool:
        """Judge the next frame by the mean of its squared samples."""
        level = 10 * math.log10(mean_square) if mean_square > 1e-12 else -120.0
        self._floor = max(self.FLOOR_DB, min(level, self._floor + self.RISE_DB))
        return level > self._floor + self.ABOVE_FLOOR_DB


class TurnDetector:
    """Finds the frames where turns end. `delay_frames`: how far the text lags behind the sound."""

    VOICED_FRAMES = 3  # in a row: a click or a breath is no turn

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
        """Judge the next frame: True where a turn ends.

        `pause_H`: probabilities of the pause heads, empty without heads. `word_frame`: the audio frame in which the
        word started that is just being written, None where there is none.
        Raises `ConfigError` when the model has fewer heads than the options ask for.
        """
        self._frame += 1
        # A word that was spoken before the last end only comes late; it does not begin another turn.
        spoke = word_frame is not None and word_frame >= self._ended_frame
        ends = self._by_heads(pause_H, spoke) if pause_H else self._by_sound(voiced, spoke)
        if ends:
            self._speaking = False
            self._ended_frame = self._frame
        return ends

    def _by_heads(self, pause_H: Sequence[float], spoke: bool) -> bool:
        head = self._options.head
        if head >= len(pause_H):
            raise ConfigError(f"head={head}: the model has only pause heads 0 to {len(pause_H) - 1}")
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
    """Gathers words into turns: a turn spans the words that start before its end was found."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque()
        self._first: Word | None = None
        self._last: Word | None = None

    @property
    def ending(self) -> bool:
        """Whether a turn has ended whose words may still come."""
        return bool(self._ends)

    def end(self, time: float) -> None:
        """A turn ended at `time`; words that started before it may still come."""
        self._ends.append(time)

    def add(self, word: Word) -> list[Turn]:
        """Take the next word; gives the turns that end before it."""
        turns = self.settle(word.start)
        self._first = self._first or word
        self._last = word
        return turns

    def settle(self, time: float) -> list[Turn]:
        """No word that starts before `time` can come any more; gives the turns that this completes."""
        turns: list[Turn] = []
        while self._ends and self._ends[0] <= time:
            self._ends.popleft()
            turns += self.flush()
        return turns

    def flush(self) -> list[Turn]:
        """The turn under way, if it has words."""
        if self._first is None or self._last is None:
            return []
        turn = Turn(self._first.start, self._last.end)
        self._first = self._last = None
        return [turn]
