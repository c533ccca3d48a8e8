"""Cut words into subtitles that fit the screen and can be read in time."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

from slipstream.errors import ConfigError
from slipstream.events import Word

MIN_CUE_SECONDS = 1.0
MAX_CUE_SECONDS = 7.0
PAUSE_SECONDS = 1.0
"""A pause this long between two words starts a new cue."""
_SENTENCE_ENDS = (".", "?", "!", "…", "。", "\N{FULLWIDTH QUESTION MARK}", "\N{FULLWIDTH EXCLAMATION MARK}")


@dataclass(frozen=True, slots=True)
class SubtitleLayout:
    """The size of a subtitle. The defaults follow the subtitling guides of Netflix and the BBC.

    Args:
        max_line_width: Columns per line; East Asian wide letters and emoji take two.
        max_line_count: Lines per cue.
        max_words: Words per cue; None for as many as fit.

    Raises:
        ConfigError: A value is below 1, or a width below 2.
    """

    max_line_width: int = 42
    max_line_count: int = 2
    max_words: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_line_width", 2), ("max_line_count", 1), ("max_words", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value}: must be at least {least}")


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle: lines of text, shown from `start` to `end` seconds."""

    text: str
    start: float
    end: float

    def to_vtt(self, settings: str = "") -> str:
        """Write the cue of WebVTT, with an empty line before it. `settings`: such as `align:start`."""
        times = f"{clock(self.start, '.')} --> {clock(self.end, '.')}"
        return f"\n{' '.join(filter(None, (times, settings)))}\n{html.escape(self.text, quote=False)}\n"


def clock(seconds: float, decimal_mark: str) -> str:
    """Return a time as `hh:mm:ss.mmm`, with this decimal mark."""
    milliseconds = round(seconds * 1000)
    return (
        f"{milliseconds // 3_600_000:02}:{milliseconds // 60_000 % 60:02}:{milliseconds // 1000 % 60:02}"
        f"{decimal_mark}{milliseconds % 1000:03}"
    )


def cues(turns: Iterable[Sequence[Word]], duration: float, layout: SubtitleLayout) -> list[Cue]:
    """Cut words, grouped by turn, into subtitles.

    A cue ends with a turn, at a pause of `PAUSE_SECONDS`, after the end of a sentence once a line is full, and before
    it would not fit the layout or last longer than `MAX_CUE_SECONDS`. A last cue shorter than a third of a line is
    joined to the cue before it, or takes words from it. A short cue is shown for `MIN_CUE_SECONDS` where the next cue
    and the end of the recording permit it. Cues do not overlap, and end with the recording. A word too long for a line
    is cut.
    """
    groups = [
        group
        for words in turns
        for run in _runs([piece for word in words for piece in pieces(word, layout.max_line_width)])
        for group in _without_orphan(_groups(run, layout), layout)
    ]
    starts = [min(group[0].start, duration) for group in groups]
    found = []
    for group, start, limit in zip(groups, starts, [*starts, duration][1:], strict=True):
        spoken = min(group[-1].end, start + MAX_CUE_SECONDS)
        end = min(max(spoken, start + MIN_CUE_SECONDS), max(limit, start))
        found.append(Cue("\n".join(_balanced_lines(group, layout.max_line_width)), start, end))
    return found


def pieces(word: Word, width: int) -> Iterator[Word]:
    """Cut a word that is too wide for a line into several, each with its share of the time."""
    parts = chop_cells(word.text, width) if cell_len(word.text) > width else [word.text]
    step = (word.end - word.start) / len(parts)
    for number, part in enumerate(parts):
        yield Word(part, word.start + number * step, word.start + (number + 1) * step, word.confidence)


def _runs(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Yield the words between pauses."""
    run: list[Word] = []
    for word in words:
        if run and word.start - run[-1].end >= PAUSE_SECONDS:
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def _groups(run: Sequence[Word], layout: SubtitleLayout) -> list[list[Word]]:
    """Fill one cue after another."""
    groups: list[list[Word]] = []
    for word in run:
        if groups and _fits([*groups[-1], word], layout) and not _ends_sentence(groups[-1], layout):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _without_orphan(groups: list[list[Word]], layout: SubtitleLayout) -> list[list[Word]]:
    """Join a short last group to the one before it, or divide the words of both about equally."""
    if len(groups) < 2 or 3 * cell_len(_text(groups[-1])) > layout.max_line_width:
        return groups
    *rest, before, last = groups
    words = before + last
    if _fits(words, layout):
        return [*rest, words]
    cuts = [cut for cut in range(1, len(words)) if _fits(words[:cut], layout) and _fits(words[cut:], layout)]
    if not cuts:
        return groups
    cut = min(cuts, key=lambda cut: abs(cell_len(_text(words[:cut])) - cell_len(_text(words[cut:]))))
    return [*rest, words[:cut], words[cut:]]


def _fits(words: Sequence[Word], layout: SubtitleLayout) -> bool:
    return len(words) == 1 or (
        words[-1].end - words[0].start <= MAX_CUE_SECONDS
        and (layout.max_words is None or len(words) <= layout.max_words)
        and len(_wrap(_text(words), layout.max_line_width)) <= layout.max_line_count
    )


def _ends_sentence(words: Sequence[Word], layout: SubtitleLayout) -> bool:
    text = _text(words)
    return text.endswith(_SENTENCE_ENDS) and cell_len(text) >= layout.max_line_width


def _balanced_lines(words: Sequence[Word], width: int) -> list[str]:
    """Break words into as few lines as they need, the lines about equally long."""
    text = _text(words)
    lines = _wrap(text, width)
    for narrower in range(max(map(cell_len, text.split()), default=1), width):
        if len(narrow := _wrap(text, narrower)) == len(lines):
            return narrow
    return lines


def _wrap(text: str, width: int) -> list[str]:
    """Fill lines of up to `width` columns with whole words."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)
