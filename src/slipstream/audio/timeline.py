"""The time line of a container: where its audio begins, and where audio is missing.

Containers differ in what their timestamps mean:

- Some only count samples (WAV, MP3, ADTS, AVI): a difference is an error of the count, never a gap.
- Transport streams, program streams and Ogg may be joined from several, each with its own clock. As in FFmpeg
  (`-dts_delta_threshold`), a jump of more than 10 s is a change of clock and not a gap.
- The others (MP4, Matroska, FLV, ASF ...) have one clock, so a gap may be long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer

# A smaller deviation is jitter of the timestamps, as for FFmpeg's aresample (min_hard_comp). At the beginning and after
# damage only the rounding of a container is.
_JITTER_SECONDS, _ROUNDING_SECONDS = 0.1, 0.005
_LONGEST_GAP_SECONDS, _LONGEST_GAP_BETWEEN_CLOCKS = 3600.0, 10.0
# Timestamps that go back by more than this restart.
_RESTART_SECONDS = 1.0
_TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT
_ONE_CLOCK = {
    "asf",
    "flac",  # states the position of each frame
    "flv",
    "matroska,webm",
    "mov,mp4,m4a,3gp,3g2,mj2",
    "nut",
    "rm",
    "wtv",
    "wv",
}


class Timeline:
    """The position in a track, in seconds from the beginning of the file.

    Args:
        start: Timestamp at which the first track of the file begins: second 0 in players.
        longest_gap: Seconds; a longer jump of the timestamps is not a gap. 0 if timestamps only count samples.
    """

    def __init__(self, start: float, longest_gap: float) -> None:
        self.seconds = 0.0
        """Audio and silence so far."""
        self.late = 0.0
        """Silence before the first audio."""
        self.missing = 0.0
        """Silence in place of audio that is missing."""
        self.jumps: list[float] = []
        """Where the timestamps jumped to another clock."""
        self._origin, self._longest_gap = start, longest_gap
        self._expected: float | None = None
        self._damaged = 0.0

    def damage(self, seconds: float) -> None:
        """Note a packet that cannot be decoded, and how long it claims to be."""
        self._damaged += seconds

    def gap(self, time: float | None) -> float:
        """Return the seconds of silence to insert before audio with timestamp `time`."""
        damaged, self._damaged = self._damaged, 0.0
        if time is None:
            return self._insert(damaged, late=False)
        if self._expected is None:
            self._origin = min(self._origin, time)
            deviation = time - self._origin
            return self._insert(deviation if deviation < _LONGEST_GAP_SECONDS else self._jump(time), late=True)
        if not self._longest_gap:
            return self._insert(damaged, late=False)
        if not -_RESTART_SECONDS < time - self._expected < self._longest_gap:
            return self._insert(self._jump(time, damaged), late=False)
        deviation = time - self._origin - self.seconds
        # FFmpeg's fragmented MP4 states a late start as a long first frame.
        late = self.seconds - self.late < _JITTER_SECONDS
        tolerance = _ROUNDING_SECONDS if late or damaged else _JITTER_SECONDS
        return self._insert(deviation if deviation > tolerance else 0.0, late)

    @property
    def end(self) -> float:
        """Timestamp of the end of the audio so far."""
        return self._origin + self.seconds

    def advance(self, time: float | None, seconds: float) -> None:
        """Note audio of `seconds` with timestamp `time`."""
        self.seconds += seconds
        if time is not None:
            self._expected = time + seconds

    def _insert(self, seconds: float, late: bool) -> float:
        seconds = max(seconds, 0.0)
        self.seconds += seconds
        if late:
            self.late += seconds
        else:
            self.missing += seconds
        return seconds

    def _jump(self, time: float, missing: float = 0.0) -> float:
        self.jumps.append(self.seconds)
        self._origin = time - self.seconds - missing
        return missing


def timeline(container: InputContainer) -> Timeline:
    start = (container.start_time or 0) / 1_000_000
    if has_clocks(container):
        return Timeline(start, _LONGEST_GAP_BETWEEN_CLOCKS)
    return Timeline(start, _LONGEST_GAP_SECONDS if container.format.name in _ONE_CLOCK else 0.0)


def has_clocks(container: InputContainer) -> bool:
    """Return whether timestamps may jump. FFmpeg's duration, from the first and the last, is then wrong."""
    return bool(container.format.flags & _TS_DISCONT)
