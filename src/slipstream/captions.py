"""Live captions: lines that roll up, in segments of WebVTT for HLS (RFC 8216).

Each word appears a constant delay after it was spoken, at the end of the last line. Text that was shown is never
changed, so a segment is written once, as soon as all its words are final.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len

from slipstream.errors import ConfigError
from slipstream.events import Event, Final, OpenWord, PartialWord, Recovered, Step, Word
from slipstream.subtitles import MIN_CUE_SECONDS, PAUSE_SECONDS, Cue, SubtitleLayout, pieces

SETTLE_SECONDS = 1.0
"""How long after the model's delay a word without any text yet may still appear (`model.text.PAUSE_FRAMES`)."""

HOLD_SECONDS = 4.0
"""Captions are erased when no word has followed for this long after the last one."""

_ROLL_SECONDS = 0.25
"""Lines roll up no faster than this, so that each is shown, also after words that came late in a burst."""

_SETTINGS = "position:10% align:start"  # a line that grows must not move
_CLOCK = 90_000
_WRAP = 1 << 33  # MPEG timestamps have 33 bits


class RollUp:
    """Lines of captions that roll up. Words become cues, one for each state of the screen.

    Args:
        layout: Size of the captions; `max_words` is not used.
        delay: How long after the start of a word its caption appears, in seconds.
    """

    def __init__(self, layout: SubtitleLayout, delay: float) -> None:
        self._layout, self._delay = layout, delay
        self._lines: list[str] = []
        self._cues: list[Cue] = []
        self._since = self._rolled = 0.0
        self._erased_at = 0.0
        self._spoken = 0.0
        self.end = 0.0
        """When the last word has been spoken, plus the delay, and has been shown for `MIN_CUE_SECONDS`."""

    def add(self, word: Word) -> None:
        """Append a word. It is cut if it is too wide for a line.

        Args:
            word: A final word. Words come in the order of their starts.
        """
        for piece in pieces(word, self._layout.max_line_width):
            self._append(piece)

    def take(self, until: float) -> tuple[Cue, ...]:
        """Return the cues up to a time, and cut the one that is shown then. Words that are added later appear after it.

        Args:
            until: The time, in seconds.
        """
        self._show(until)
        cues, self._cues = (
            self._cues,
            [replace(cue, start=max(cue.start, until)) for cue in self._cues if cue.end > until],
        )
        return tuple(replace(cue, end=min(cue.end, until)) for cue in cues if cue.start < until)

    def _append(self, word: Word) -> None:
        at = max(word.start + self._delay, self._since)
        line = f"{self._lines[-1]} {word.text}" if self._lines else word.text
        breaks = word.start - self._spoken >= PAUSE_SECONDS or cell_len(line) > self._layout.max_line_width
        if breaks:
            line, at = word.text, max(at, self._rolled + _ROLL_SECONDS)
        self._show(at)
        if not self._lines or breaks:
            self._lines = [*self._lines[1 - self._layout.max_line_count :], word.text] if self._keeps else [word.text]
            self._rolled = at
        else:
            self._lines[-1] = line
        self._spoken = max(self._spoken, word.end)
        self.end = max(at + MIN_CUE_SECONDS, word.end + self._delay)
        self._erased_at = self.end + HOLD_SECONDS

    @property
    def _keeps(self) -> bool:
        """Whether there is a line above the last one."""
        return self._layout.max_line_count > 1

    def _show(self, until: float) -> None:
        """Make a cue of what is shown up to a time, and erase what has been shown long enough."""
        end = min(until, self._erased_at)
        if self._lines and round(end - self._since, 3) > 0:
            self._cues.append(Cue("\n".join(self._lines), self._since, end))
        if until >= self._erased_at:
            self._lines = []
        self._since = max(self._since, until)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the captions. `number`: from 0. `start`, `end`: seconds. `cues`: within these."""

    number: int
    start: float
    end: float
    cues: tuple[Cue, ...]

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.end - self.start

    def to_vtt(self, offset: float = 0.0) -> str:
        """Return the WebVTT file.

        Args:
            offset: The time in the MPEG stream where the audio starts, in seconds.
        """
        timestamp = round(offset * _CLOCK) % _WRAP
        head = f"WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:{timestamp},LOCAL:00:00:00.000\n"
        # FFmpeg reads the segments as one file: the empty line separates the last cue from the next header.
        return head + "".join(cue.to_vtt(_SETTINGS) for cue in self.cues) + "\n"


class CaptionSegments:
    """Cuts the captions of a stream into segments of equal length. No I/O: pass it the events of a session.

    Args:
        model_delay: How far the text of the model is behind the audio, in seconds.
        frame_rate: Frames per second of the model.
        delay: How long after a word is spoken its caption appears, in seconds. From `model_delay + SETTLE_SECONDS`
            on, a segment is complete as soon as its audio has been processed.
        seconds: Length of a segment.
        layout: Size of the captions.

    Raises:
        ConfigError: `delay` is negative, or `seconds` is below 1.

    Example:
        >>> segments = CaptionSegments(transcriber.delay, transcriber.frame_rate)
        >>> for event in transcriber.stream(chunks, 16_000, options=SessionOptions(steps=True)):
        ...     for segment in segments.add(event):
        ...         print(segment.to_vtt())
    """

    def __init__(
        self,
        model_delay: float,
        frame_rate: float,
        *,
        delay: float = 0.0,
        seconds: float = 6.0,
        layout: SubtitleLayout | None = None,
    ) -> None:
        if not 0 <= delay < math.inf:
            raise ConfigError(f"delay={delay}: must be at least 0 seconds")
        if not 1 <= seconds < math.inf:
            raise ConfigError(f"seconds={seconds}: a segment must have at least 1 second")
        self._model_delay, self._frame_rate = model_delay, frame_rate
        self._delay, self._seconds = delay, seconds
        self._lines = RollUp(layout or SubtitleLayout(32, 2), delay)
        self._open: float | None = None
        self._number = 0
        self.position = 0.0
        """Seconds of audio processed so far."""

    def add(self, event: Event) -> Iterator[Segment]:
        """Add the next event of a session.

        Args:
            event: An event of a session with the options `steps` and `partials`.

        Yields:
            The segments that are complete.
        """
        match event:
            case PartialWord(start=start) | OpenWord(start=start):
                self._open = start
            case Word():
                self._open = None
                self._lines.add(event)
            case Recovered():
                self._open = None
            case Step(index=index):
                self.position = index / self._frame_rate
                settled = self.position - self._model_delay - SETTLE_SECONDS
                yield from self._cut(min(settled, math.inf if self._open is None else self._open) + self._delay)
            case Final(duration=duration):
                yield from self.finish(duration)

    def finish(self, duration: float) -> Iterator[Segment]:
        """End the captions, for a stream that ended without `Final`.

        Args:
            duration: Length of the audio, in seconds.

        Yields:
            The other segments. They end with the audio, or once the last word has been shown.
        """
        end = max(duration, self._lines.end, self._number * self._seconds)
        yield from self._cut(end)
        start = self._number * self._seconds
        if round(end - start, 3) > 0:
            yield Segment(self._number, start, end, self._lines.take(end))
            self._number += 1

    def _cut(self, until: float) -> Iterator[Segment]:
        while (end := (self._number + 1) * self._seconds) <= until:
            yield Segment(self._number, self._number * self._seconds, end, self._lines.take(end))
            self._number += 1


class MediaPlaylist:
    """The HLS playlist of segments.

    Args:
        seconds: The longest duration of a segment.
        window: Segments to list, the last ones; None lists all. A segment is `expired` only after it has not been
            listed for as long as a whole playlist lasts, because players may still load it (section 6.2.2).

    Raises:
        ConfigError: `window` is below 3, the fewest with which players keep up.
    """

    def __init__(self, seconds: float, window: int | None = None) -> None:
        if window is not None and window < 3:
            raise ConfigError(f"window={window}: must be at least 3 segments")
        self._target, self._window = math.ceil(seconds), window
        self._listed: deque[tuple[Segment, str]] = deque()
        self._unlisted: deque[str] = deque()
        self.ended = False

    def add(self, segment: Segment, uri: str) -> Sequence[str]:
        """List a segment.

        Args:
            segment: The next segment.
            uri: Its address, relative to the playlist's.

        Returns:
            The addresses of the segments that are expired.
        """
        self._listed.append((segment, uri))
        if self._window is None or len(self._listed) <= self._window:
            return ()
        self._unlisted.append(self._listed.popleft()[1])
        return [self._unlisted.popleft()] if len(self._unlisted) > self._window + 1 else ()

    def render(self) -> str:
        """Return the text of the playlist."""
        first = self._listed[0][0].number if self._listed else 0
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{self._target}"]
        lines.append(f"#EXT-X-MEDIA-SEQUENCE:{first}")
        if self._window is None:
            lines.append("#EXT-X-PLAYLIST-TYPE:EVENT")
        for segment, uri in self._listed:
            lines += [f"#EXTINF:{segment.duration:.3f},", uri]
        if self.ended:
            lines.append("#EXT-X-ENDLIST")
        return "\n".join(lines) + "\n"
