"""What all sessions of a model share, and the options of one session."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from slipstream.engine.history import Continuation
from slipstream.engine.turns import TurnOptions
from slipstream.engine.watchdog import WatchdogOptions
from slipstream.errors import ConfigError
from slipstream.hints import Hints
from slipstream.language.identify import candidates
from slipstream.model.confidence import Calibration
from slipstream.model.config import STTConfig
from slipstream.model.runner import BaseRunner, Runner
from slipstream.model.text import Tokenizer


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """What all sessions of one model share.

    Args:
        tokenizer: The tokenizer of the model.
        frame_samples: Samples per frame.
        frame_rate: Frames per second.
        delay_frames: How far the text is behind the audio.
        silence_frames: Frames of silence that the model needs before the audio.
        turns: When a turn ends, for sessions that do not set it.
        calibration: What the model's probabilities mean; None leaves them as they are.
        config: The configuration of the model; None has one delay, and the text tokens of the tokenizer.
    """

    tokenizer: Tokenizer
    frame_samples: int
    frame_rate: float
    delay_frames: int
    silence_frames: int = 0
    turns: TurnOptions = field(default_factory=TurnOptions)
    calibration: Calibration | None = None
    config: STTConfig | None = None

    @classmethod
    def of(
        cls,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        silence_prefix_seconds: float = 0.0,
        turns: TurnOptions | None = None,
        calibration: Calibration | None = None,
    ) -> StreamFormat:
        """Return the format of a model. `silence_prefix_seconds`: silence that it needs before the audio."""
        return cls(
            tokenizer=tokenizer,
            frame_samples=runner.frame_samples,
            frame_rate=runner.frame_rate,
            delay_frames=runner.delay_frames,
            silence_frames=math.ceil(silence_prefix_seconds * runner.frame_rate),
            turns=turns or TurnOptions(),
            calibration=calibration,
            config=runner.config if isinstance(runner, BaseRunner) else None,
        )

    @property
    def sample_rate(self) -> int:
        """Of the model's audio, in Hz."""
        return round(self.frame_samples * self.frame_rate)

    @property
    def min_confidence(self) -> float:
        """The threshold of sessions that do not set `SessionOptions.min_confidence`."""
        return 0.0 if self.config is None else self.config.min_confidence

    @property
    def word_shift_seconds(self) -> float:
        """What is added to the times of words."""
        return 0.0 if self.config is None else self.config.word_shift_seconds

    @property
    def lag_frames(self) -> int:
        """Frames by which the pause heads are later than in live streams."""
        return 0 if self.config is None else self.config.lag_frames

    @property
    def kept_frames(self) -> int:
        """Frames of audio that a session keeps, to give them to the model again after a reset by the watchdog.

        They are those without text so far. In live streams, they are few, and their memory is that of many sessions.
        """
        return self.delay_frames if self.lag_frames else 0

    @property
    def delays(self) -> bool:
        """Whether sessions may have different delays."""
        return self.config is not None and self.config.delay_condition is not None

    def language_number(self, languages: Iterable[str]) -> int:
        """Return the number of the language that a stream of these languages is in, for `Runner.reset`.

        It is 0, which leaves the language open, with several languages, or with one that the model cannot be set to.
        """
        codes = candidates(languages)
        return self.config.lm.language_number(codes[0]) if self.config is not None and len(codes) == 1 else 0

    @property
    def text_vocab(self) -> int:
        """Text tokens that the model writes: the tokenizer may have more."""
        return self.tokenizer.vocab_size if self.config is None else self.config.lm.text_vocab

    def with_delay(self, delay: float | None) -> StreamFormat:
        """Return the format of a session with this text delay, in seconds; None is the model's.

        Raises `ConfigError` if the model does not have this delay.
        """
        if delay is None:
            return self
        if self.config is None:
            raise ConfigError(f"delay={delay:g}: this model has one delay, {self.delay_frames / self.frame_rate:g} s")
        return replace(self, delay_frames=self.config.with_delay(delay).delay_frames)


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Options of one session.

    Args:
        partials: Emit words while they are being written, as `PartialWord`.
        steps: Emit a `Step` for every frame.
        low_latency: Flush at each end of turn, so that its last words come immediately.
        turns: When a turn ends; None uses the model's configuration.
        watchdog: When to reset a model that has stopped writing or repeats itself; None disables it.
        max_buffered_seconds: Most audio that may wait to be processed.
        flush_after_silence: Flush the text once after this many seconds without voice, so that the last word comes
            without a marker.
        min_confidence: Words are withheld while the running mean of their confidence is lower, as it is for words
            that a model writes in noise. 0 emits all words; None uses the model's configuration.
        hints: What is known about the speech, and how much to search.
        continues: Where the session begins in a longer stream, and the text of that stream; it then emits `History`.
    """

    partials: bool = True
    steps: bool = False
    low_latency: bool = False
    turns: TurnOptions | None = None
    watchdog: WatchdogOptions | None = field(default_factory=WatchdogOptions)
    max_buffered_seconds: float = 30.0
    flush_after_silence: float | None = None
    min_confidence: float | None = None
    hints: Hints = field(default_factory=Hints)
    continues: Continuation | None = None

    def __post_init__(self) -> None:
        if self.flush_after_silence is not None and not self.flush_after_silence > 0:
            raise ConfigError(f"flush_after_silence={self.flush_after_silence} must be more than 0 seconds")
        if self.min_confidence is not None and not 0 <= self.min_confidence < 1:
            raise ConfigError(f"min_confidence={self.min_confidence} must be at least 0 and below 1")
        if self.max_buffered_seconds < 1:
            raise ConfigError(f"max_buffered_seconds={self.max_buffered_seconds} must be at least 1")
