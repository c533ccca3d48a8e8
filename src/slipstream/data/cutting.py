"""Cut long recordings at pauses between words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from slipstream.audio import SAMPLE_RATE, load
from slipstream.data.manifest import Recording
from slipstream.data.wave import write_wave
from slipstream.errors import SlipstreamError
from slipstream.events import Word


def cut(recording: Recording, folder: Path, longest: float, number: int = 0) -> Iterator[Recording]:
    """Cut a recording into pieces of at most `longest` seconds, at its widest pauses, and write them below `folder`.

    A shorter recording stays as it is; a piece with one word may be longer. `number`: that of the recording, which
    makes the names of its pieces unique. Raises `SlipstreamError` when the words have no times.
    """
    if recording.seconds is not None and recording.seconds <= longest:
        yield recording
        return
    samples = load(recording.audio)
    seconds = len(samples) / SAMPLE_RATE
    if seconds <= longest:
        yield replace(recording, seconds=seconds)
        return
    if not recording.words:
        raise SlipstreamError(f"{recording.audio}: cutting needs the words' times; `slipstream data align` finds them")
    folder.mkdir(parents=True, exist_ok=True)
    for part, (words, start, end) in enumerate(_pieces(recording.words, 0.0, seconds, longest)):
        piece = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        path = folder / f"{recording.audio.stem}-{number:06d}-{part:03d}.wav"
        write_wave(path, piece)
        moved = tuple(Word(w.text, w.start - start, w.end - start) for w in words)
        phones = tuple((name, at - start) for name, at in recording.phones if start <= at < end)
        text = " ".join(word.text for word in words)
        seconds = len(piece) / SAMPLE_RATE
        yield replace(recording, audio=path, text=text, words=moved, phones=phones, seconds=seconds)


def _pieces(
    words: Sequence[Word], start: float, end: float, longest: float
) -> Iterator[tuple[Sequence[Word], float, float]]:
    """Split words at pauses; yield them with their start and end. A pause near either end counts for less."""
    if end - start <= longest or len(words) < 2:
        yield words, start, end
        return
    middles = [(a.end + b.start) / 2 for a, b in pairwise(words)]
    room = [min(m - start, end - m) for m in middles]
    widths = [max(b.start - a.end, 0.01) for a, b in pairwise(words)]
    best = max(range(len(widths)), key=lambda i: widths[i] * min(room[i], longest / 2))
    yield from _pieces(words[: best + 1], start, middles[best], longest)
    yield from _pieces(words[best + 1 :], middles[best], end, longest)
