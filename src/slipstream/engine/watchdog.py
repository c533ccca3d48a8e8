"""Detect a known failure of delayed-streams models on long audio: they stop writing text, or repeat themselves."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from slipstream.arrays import FloatArray
from slipstream.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WatchdogOptions:
    """When a model has failed, and when its state is reset.

    Args:
        mute_seconds: Seconds of speech without text after which the model has failed. Doubles after each reset that
            brought no text: the speech may be music.
        loop_repeats: Repetitions of the same tokens, up to `LONGEST_LOOP`, after which the model has failed.
        pause_seconds: Length of the pause in which the state is reset, so that no word is cut.
        patience_seconds: The state is reset after this time even without a pause.

    Raises:
        ConfigError: A value is out of its range.
    """

    mute_seconds: float = 10.0
    loop_repeats: int = 10
    pause_seconds: float = 0.4
    patience_seconds: float = 5.0

    def __post_init__(self) -> None:
        if min(self.mute_seconds, self.pause_seconds) <= 0 or self.patience_seconds < 0 or self.loop_repeats < 3:
            raise ConfigError(
                f"{self}: mute_seconds and pause_seconds must be above 0, patience_seconds at least 0, loop_repeats at "
                "least 3 (speakers repeat words, too)"
            )


LONGEST_LOOP = 8
MIN_LOOP_TOKENS = 20
"""A loop has at least this many tokens in total; "no, no, no" or the zeros of a phone number have fewer."""
LONGEST_GAP_SECONDS = 1.0
"""A loop has no longer gap in its text: a speaker may answer only "yes" for minutes."""


class Watchdog:
    """Watches one stream, and keeps the audio whose text a reset would lose.

    Args:
        options: When the model has failed.
        delay_frames: How far its text is behind the audio.
        frame_rate: Frames per second.
        kept_frames: The last frames of audio that a model gets again after a reset.
    """

    def __init__(self, options: WatchdogOptions, delay_frames: int, frame_rate: float, kept_frames: int = 0) -> None:
        self._options = options
        self._rate = frame_rate
        self._delay = delay_frames
        self._pause_limit = round(options.pause_seconds * frame_rate)
        self._patience = round(options.patience_seconds * frame_rate)
        self._set_mute_factor(1)
        self._longest_gap = round(LONGEST_GAP_SECONDS * frame_rate)
        self._silent_speech = self._quiet = self._blank = self._waited = 0
        self._loop_limits = [max(n * options.loop_repeats, MIN_LOOP_TOKENS) for n in range(LONGEST_LOOP + 1)]
        self._near_loop = False
        self._forget_tokens()
        self._loop: str | None = None
        self._heard: deque[FloatArray] = deque(maxlen=kept_frames)
        self._again = 0  # frames to come that the model gets again

    def hear(self, frame_S: FloatArray) -> None:
        """Keep a frame of audio that the model gets."""
        self._heard.append(frame_S)

    def give_again(self, frames: deque[FloatArray]) -> int:
        """Put the frames whose text a reset loses before the `frames` that wait for the model. Returns their number."""
        self._again = len(self._heard)
        frames.extendleft(reversed(self._heard))
        self._heard.clear()
        return self._again

    def counted(self) -> bool:
        """Whether the next frame is one that the model gets again. Otherwise it is to be passed to `push`."""
        if not self._again:
            return False
        self._again -= 1
        return True

    @property
    def calm(self) -> bool:
        """Whether the next frame cannot be a reason to reset the state."""
        return not self._near_loop and self._loop is None and self._silent_speech + 1 <= self._mute_limit

    def push(self, text_token: int | None, voiced: bool) -> str | None:
        """Process the next frame.

        Args:
            text_token: The token if it carries text, else None.
            voiced: Whether the frame has voice.

        Returns:
            The reason to reset the state now, or None.
        """
        self._quiet = 0 if voiced else self._quiet + 1
        if text_token is not None:
            if self._blank > self._longest_gap:
                self._forget_tokens()
            if self._mute_factor != 1:
                self._set_mute_factor(1)
            self._blank = self._silent_speech = 0
            self._loop = self._find_loop(text_token)
        else:
            self._blank += 1
            self._silent_speech += voiced
        reason = self._loop or (self._mute() if self._silent_speech > self._mute_limit else None)
        if reason is None:
            self._waited = 0
            return None
        self._waited += 1
        if self._quiet < self._pause_limit and self._waited <= self._patience:
            return None
        if self._loop is None:
            self._set_mute_factor(2 * self._mute_factor)
        self._silent_speech = self._waited = 0
        self._forget_tokens()
        self._loop = None
        return reason

    def _set_mute_factor(self, factor: int) -> None:
        self._mute_factor = factor
        self._mute_limit = self._options.mute_seconds * factor * self._rate + self._delay

    def _mute(self) -> str:
        return f"no text for {self._options.mute_seconds * self._mute_factor:g} s of speech"

    def _find_loop(self, token: int) -> str | None:
        found = None
        self._near_loop = False
        for n, earlier in enumerate(self._recent, start=1):
            if earlier != token:
                self._matches[n] = 0
                continue
            self._matches[n] += 1
            repeated, limit = self._matches[n] + n, self._loop_limits[n]
            self._near_loop |= repeated + 1 >= limit
            if found is None and repeated >= limit:
                found = f"the same {n} tokens {repeated // n} times in a row"
        self._recent.appendleft(token)
        return found

    def _forget_tokens(self) -> None:
        self._recent: deque[int] = deque(maxlen=LONGEST_LOOP)  # the newest first
        self._matches = [0] * (LONGEST_LOOP + 1)
        """For each n, the number of consecutive tokens that equal the one n places before them."""
