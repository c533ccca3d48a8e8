"""Turns: find where a speaker has finished, by the pause heads or, for models without them, by the loudness."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slipstream.errors import ConfigError
from slipstream.events import EndOfTurn, StartOfTurn, Turn, Word
from slipstream.language.identify import LanguageTracker
from slipstream.model.confidence import EndingCurve
from slipstream.model.config import END_OF_TURN_ABOVE, STTConfig

VOICE_DB = 12.0
"""How much louder than the background voice is: at least 15 dB in a usable recording."""


_RESUME_BELOW = 0.4


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """When a turn ends.

    With pause heads, it ends once a probability exceeds `end_above`: that of `curve` or, without one, of head `head`.
    Without heads, it ends after `quiet_seconds` without voice, or after `blank_seconds` without text, for noisy
    recordings.

    Args:
        head: The pause head; head 2 predicts that no new word follows within 2 s. None uses no head, and no curve.
        curve: The probability that the speaker has finished, by all heads and the silence so far.
        end_above: Probability above which a turn ends.
        resume_below: Probability below which the next turn begins.
        warmup_frames: Frames at the start of a stream in which no turn ends.
        quiet_seconds: Silence that ends a turn, where no pause head is used.
        blank_seconds: Time without text that ends a turn, where no pause head is used.
        voice_db: How much louder than the background a frame with voice is.
        wait_seconds: Silence that ends a turn in any case; None waits for the pause head.

    Raises:
        ConfigError: A value is out of its range.
    """

    head: int | None = 2
    curve: EndingCurve | None = None
    end_above: float = END_OF_TURN_ABOVE
    resume_below: float = _RESUME_BELOW
    warmup_frames: int = 12
    quiet_seconds: float = 0.8
    blank_seconds: float = 3.0
    voice_db: float = VOICE_DB
    wait_seconds: float | None = None

    @classmethod
    def of(cls, config: STTConfig) -> TurnOptions:
        """Return the options of a model: its threshold, its curve, and its last pause head if it has no third."""
        head, end_above = min(_USUAL_HEAD, max(0, config.lm.pause_heads - 1)), config.end_of_turn_above
        return cls(head, config.end_of_turn, end_above, resume_below=min(_RESUME_BELOW, end_above))

    def __post_init__(self) -> None:
        if not 0 <= self.resume_below <= self.end_above <= 1:
            raise ConfigError(
                f"resume_below={self.resume_below}, end_above={self.end_above}: "
                "both must be within [0, 1], and resume_below at most end_above"
            )
        if (self.head or 0) < 0 or self.warmup_frames < 0 or self.voice_db < 0:
            raise ConfigError(
                f"head={self.head}, warmup_frames={self.warmup_frames}, voice_db={self.voice_db}: "
                "all must be at least 0"
            )
        for name in ("quiet_seconds", "blank_seconds", "wait_seconds"):
            if (seconds := getattr(self, name)) is not None and seconds <= 0:
                raise ConfigError(f"{name}={seconds} must be above 0")


_USUAL_HEAD = 2


class VoiceLevel:
    """Measures how loud frames are. Its estimate of the background falls immediately and rises slowly.

    Attributes:
        faint: Whether the last frame was much quieter than the loudest of the last seconds: a pause, also in noise that
            is too loud or varies too much to be background.
    """

    FAINT_DB = 12.0
    FLOOR_DB = -60.0  # quieter than any room: lower levels carry no information
    RISE_DB = 0.1  # per frame, 1.25 dB/s: slow compared with a sentence, fast enough for a fan that starts

    def __init__(self) -> None:
        self._floor = self.FLOOR_DB
        self._loudest = 0.0
        self.faint = False

    def push(self, mean_square: float) -> float:
        """Return how much louder the next frame is than the background, in dB, by the mean of its squared samples."""
        level = 10 * math.log10(mean_square) if mean_square > 1e-12 else -120.0
        floor = self._floor + self.RISE_DB
        if level < floor:
            floor = level if level > self.FLOOR_DB else self.FLOOR_DB
        self._floor = floor
        loudness = level - floor
        self._loudest = max(self._loudest - self.RISE_DB, loudness)
        self.faint = loudness < self._loudest - self.FAINT_DB
        return loudness


class TurnDetector:
    """Finds the frames where turns start and end.

    A frame's sound is compared with the pause heads and the text of `lag_frames` frames later, where the model encodes
    the audio so much later than in live streams. The heads then judge that frame.

    Args:
        options: When a turn ends.
        delay_frames: How far the text is behind the audio.
        frame_rate: Frames per second.
        lag_frames: How much later than in live streams the model encodes the audio.

    Attributes:
        started_frame: The audio frame in which the turn began that the last frame started, if any.
        ended_frame: The audio frame after which the last turn ended.
        probability: By the last frame, the probability that is compared with `end_above`; None without pause heads.
    """

    VOICED_FRAMES = 3  # in a row: a click or a breath is not a turn

    def __init__(self, options: TurnOptions, delay_frames: int, frame_rate: float, lag_frames: int = 0) -> None:
        self._delay, self._rate, self._lag = delay_frames - lag_frames, frame_rate, lag_frames
        self._sound: deque[tuple[bool, bool]] = deque()  # of the frames that are not judged yet
        self.set_options(options)
        self._frame = 0
        self._speaking = False
        self.ended_frame = 0
        self._voiced = self._quiet = self._silent = self._blank = 0
        self._started = False
        self.started_frame: int | None = None
        self.probability: float | None = None

    @property
    def behind(self) -> bool:
        """Whether frames are not judged yet, because the model encodes them later."""
        return bool(self._sound)

    def set_options(self, options: TurnOptions) -> None:
        """Change when turns end, from the next frame on."""
        self.options = options
        self._quiet_limit = round(options.quiet_seconds * self._rate)
        self._blank_limit = round(options.blank_seconds * self._rate)
        self._wait_limit = math.inf if options.wait_seconds is None else round(options.wait_seconds * self._rate)

    def push(self, pause_H: Sequence[float], voiced: bool, word_frame: int | None, faint: bool = False) -> bool:
        """Process the next frame.

        Args:
            pause_H: Probabilities of the pause heads; empty for a model without heads.
            voiced: Whether the frame has voice.
            word_frame: The audio frame where the word that is being written started, if any.
            faint: Whether a curve counts the frame as silence in any case (`VoiceLevel.faint`).

        Returns:
            Whether a turn ends, after `ended_frame`.

        Raises:
            ConfigError: The model does not have the pause head of the options.
        """
        self._sound.append((voiced, faint))
        self.started_frame = self.probability = None
        return len(self._sound) > self._lag and self.push_output(pause_H, word_frame)

    def push_output(self, pause_H: Sequence[float], word_frame: int | None) -> bool:
        """Process the output of a frame after the end of the audio, as `push` does; for the frames that lag behind."""
        self.started_frame = self.probability = None
        if not self._sound:
            return False
        voiced, faint = self._sound.popleft()
        self._frame += 1
        # A word spoken before the last end of turn comes late, and does not begin another turn.
        spoke = word_frame is not None and word_frame >= self.ended_frame
        self._voiced = self._voiced + 1 if voiced else 0
        self._quiet = 0 if voiced else self._quiet + 1
        self._silent = 0 if voiced and not faint else self._silent + 1
        if not self._started and (spoke or self._voiced >= self.VOICED_FRAMES):
            self._started = True
            began = self._frame - self._voiced
            if spoke and word_frame is not None:
                began = min(began, word_frame)
            self.started_frame = max(self.ended_frame, began)
        self.probability = self._probability(pause_H)
        ends = self._by_sound(spoke) if self.probability is None else self._by_heads(self.probability, spoke)
        if ends or (self._started and self._quiet >= self._wait_limit):
            self._speaking = self._started = False
            self.ended_frame = self._frame
            return True
        return False

    def report(self, ended: bool, builder: TurnBuilder) -> list[StartOfTurn | EndOfTurn]:
        """Return the events of the last frame, and pass the end of a turn to `builder`."""
        events: list[StartOfTurn | EndOfTurn] = []
        if self.started_frame is not None:
            events.append(StartOfTurn(self.started_frame / self._rate))
        if ended:
            time = self.ended_frame / self._rate
            events.append(EndOfTurn(time))
            builder.end(time)
        return events

    def _probability(self, pause_H: Sequence[float]) -> float | None:
        head, curve = self.options.head, self.options.curve
        if not pause_H or head is None:
            return None
        if curve is not None:
            if len(curve.heads) != len(pause_H):
                raise ConfigError(f"the curve has {len(curve.heads)} pause heads, the model {len(pause_H)}")
            return curve.at(pause_H, self._silent / self._rate)
        if head >= len(pause_H):
            raise ConfigError(f"head={head}: the model has pause heads 0 to {len(pause_H) - 1}")
        return pause_H[head]

    def _by_heads(self, probability: float, spoke: bool) -> bool:
        if spoke:
            self._speaking = True
        if self._frame <= self.options.warmup_frames:
            return False
        # A click ends the silence that a curve counts, but is not speech.
        if probability < self.options.resume_below and (
            self.options.curve is None or self._voiced >= self.VOICED_FRAMES
        ):
            self._speaking = True
        return self._speaking and probability > self.options.end_above

    def _by_sound(self, spoke: bool) -> bool:
        self._blank = 0 if spoke else self._blank + 1
        if not self._speaking and (spoke or self._voiced >= self.VOICED_FRAMES):
            self._speaking = True
            self._blank = -self._delay
        return self._speaking and (self._quiet >= self._quiet_limit or self._blank >= self._blank_limit)


class TurnBuilder:
    """Groups words into turns. A turn has the words that start before its end was found.

    Args:
        languages: Identifies the language of a turn by its words.
    """

    def __init__(self, languages: LanguageTracker | None = None) -> None:
        self._languages = languages or LanguageTracker()
        self._ends: deque[float] = deque()
        self._words: list[Word] = []

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
        self._words.append(word)
        return turns

    def settle(self, time: float) -> list[Turn]:
        """Return the turns that are complete when no more words start before `time`."""
        turns: list[Turn] = []
        while self._ends and self._ends[0] <= time:
            end = self._ends.popleft()
            # An end that is found late, after a flush, may be before words that are already here.
            later = [word for word in self._words if word.start >= end]
            self._words = [word for word in self._words if word.start < end]
            turns += self.flush()
            self._words = later
        return turns

    def flush(self) -> list[Turn]:
        """Return the current turn, if it has words."""
        words, self._words = self._words, []
        if not words:
            return []
        turn = Turn(words[0].start, words[-1].end)
        if (guess := self._languages.identify(words)) is not None:
            turn = replace(turn, language=guess.language, language_confidence=guess.confidence)
        return [turn]
