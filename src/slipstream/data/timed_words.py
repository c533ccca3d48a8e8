"""Word times from other tools: OpenAI's and faster-whisper's JSON, MFA's and Praat's TextGrid, and CTM.

Tools write words in their own spelling, mostly without case and punctuation. `retime` gives their times to the words of
the recording's own text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from slipstream.data.alignment import spread
from slipstream.data.manifest import ManifestError, Recording
from slipstream.data.tokenizer import plain_word
from slipstream.errors import SlipstreamError
from slipstream.events import Word

LEAST_SHARED = 0.5
"""Share of a text's letters that must be in the timed words: less, and they are of another recording."""
SILENCES = frozenset({"", "<eps>", "sil", "sp", "spn", "<unk>", "[unk]"})
"""What MFA and Kaldi write where no word is."""
SUFFIXES = {"whisper": ".json", "textgrid": ".TextGrid", "ctm": ".ctm"}


def import_times(recording: Recording, source: Path, kind: str) -> tuple[Recording, float]:
    """Return the recording with the word times of another tool's output, and the share of its text that they cover.

    A recording without a text gets that of the output.

    Args:
        recording: The recording.
        source: A folder with a file for each recording, named as its audio; or, for CTM, one file of all.
        kind: `whisper`, `textgrid` or `ctm`.

    Raises:
        SlipstreamError: There is no output for the recording, it cannot be read, or it fits another text.
    """
    stem = recording.audio.stem
    path = source / f"{stem}{SUFFIXES[kind]}" if source.is_dir() else source
    phones: tuple[tuple[str, float], ...] = ()
    try:
        content = _decoded(path.read_bytes())
        if kind == "whisper":
            timed: Sequence[Word] = whisper_words(json.loads(content))
        elif kind == "textgrid":
            timed, phones = textgrid_words(content)
        else:
            timed = ctm_words(content).get(stem, ())
    except OSError as error:
        raise SlipstreamError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SlipstreamError(f"{path}: is not {kind} output: {error}") from error
    if not timed:
        raise SlipstreamError(f"{path}: has no timed words of {stem}")
    if not recording.text.strip():
        text = " ".join(word.text for word in timed)
        return replace(recording, text=text, words=tuple(timed), phones=phones), 1.0
    words, shared = retime(recording.text, timed, recording.lang)
    return replace(recording, words=words, phones=phones or recording.phones), shared


def retime(text: str, timed: Sequence[Word], language: str = "") -> tuple[tuple[Word, ...], float]:
    """Give the times of a tool's words to the words of a text, and the share of its letters in words that are equal.

    Words are compared in lower case and without punctuation; one that the tool lacks shares its neighbour's time.

    Raises:
        SlipstreamError: Less than `LEAST_SHARED` is equal.

    Example:
        >>> retime("Hello, world.", [Word("hello", 0.1, 0.5), Word("world", 0.6, 1.0)])[0][1]
        Word(text='world.', start=0.6, end=1.0, confidence=1.0)
    """
    ours = text.split()
    plain = [plain_word(word, language) for word in ours]
    theirs = [plain_word(word.text, language) for word in timed]
    starts: list[float | None] = [None] * len(ours)
    ends: list[float | None] = [None] * len(ours)
    equal = 0
    for tag, a, b, c, d in SequenceMatcher(None, plain, theirs, autojunk=False).get_opcodes():
        if tag == "equal" or (tag == "replace" and b - a == d - c):
            for i, word in zip(range(a, b), timed[c:d], strict=True):
                starts[i], ends[i] = word.start, word.end
        equal += sum(map(len, plain[a:b])) if tag == "equal" else 0
    shared = equal / max(1, sum(map(len, plain)))
    if shared < LEAST_SHARED:
        raise SlipstreamError(
            f"only {shared:.0%} of the text {text!r} is in the timed words {' '.join(w.text for w in timed)!r}; "
            f"at least {LEAST_SHARED:.0%} must be"
        )
    return spread(ours, starts, ends, max((word.end for word in timed), default=0.0)), shared


def whisper_words(raw: Mapping[str, Any]) -> list[Word]:
    """The words of Whisper's JSON (`--word_timestamps True --output_format json`), WhisperX's too.

    Words that WhisperX could not time are left out. Raises `ValueError` for a file without word times.
    """
    parts = [part for segment in raw["segments"] for part in segment.get("words", ())]
    if not parts and raw["segments"]:
        raise ValueError("its segments have no words: run Whisper with --word_timestamps True")
    return [
        Word(str(part["word"]).strip(), float(part["start"]), float(part["end"]), _confidence(part))
        for part in parts
        if "start" in part and "end" in part and str(part["word"]).strip()
    ]


def _confidence(part: Mapping[str, Any]) -> float:
    return float(part.get("probability", part.get("score", 1.0)))


def textgrid_words(content: str) -> tuple[list[Word], tuple[tuple[str, float], ...]]:
    """The words and phones of a TextGrid, long or short: its interval tiers whose names end in `words` and `phones`.

    With one tier of any name, that has the words. Raises `ValueError` for another kind of file.
    """
    tiers = _tiers(content)
    words = [row for name, rows in tiers if name.lower().endswith("words") for row in rows]
    if not words and len(tiers) == 1:
        words = tiers[0][1]
    phones = [row for name, rows in tiers if name.lower().endswith("phones") for row in rows]
    return (
        [Word(text, start, end) for start, end, text in sorted(words) if text.lower() not in SILENCES],
        tuple((text if text.lower() not in SILENCES else "_", start) for start, _, text in sorted(phones)),
    )


_Row = tuple[float, float, str]


def _tiers(content: str) -> list[tuple[str, list[_Row]]]:
    """The interval tiers, by name: rows of start, end and label."""
    if "TextGrid" not in content:
        raise ValueError("no TextGrid")
    # Both forms have the same values in the same order; the long one has names and numbers of items around them.
    plain = re.sub(r"(?m)^\s*(item|intervals|points) \[\d*\]:\s*$", "", content)
    values = re.findall(r'"((?:[^"]|"")*)"|(?<![\w"])(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)(?![\w"])', plain)
    tokens = [text.replace('""', '"') if not number else float(number) for text, number in values]
    tiers: list[tuple[str, list[_Row]]] = []
    at = 5  # file type, object class, two times, the number of tiers
    while at < len(tokens):
        kind, name, count = tokens[at], str(tokens[at + 1]), int(tokens[at + 4])
        at += 5
        if kind == "IntervalTier":
            rows = [tokens[i : i + 3] for i in range(at, at + 3 * count, 3)]
            tiers.append((name, [(float(a), float(b), str(text).strip()) for a, b, text in rows]))
        at += (3 if kind == "IntervalTier" else 2) * count
    return tiers


def ctm_words(content: str) -> dict[str, list[Word]]:
    """The words of a CTM file (`id channel start duration word [confidence]`) by id."""
    found: dict[str, list[Word]] = {}
    for line in content.splitlines():
        parts = line.split()
        if not parts or line.startswith(";;"):
            continue
        name, _, start, duration, text, *more = parts
        if text.lower() not in SILENCES:
            confidence = float(more[0]) if more else 1.0
            word = Word(text, float(start), round(float(start) + float(duration), 6), confidence)
            found.setdefault(name, []).append(word)
    return {name: sorted(words, key=lambda word: word.start) for name, words in found.items()}


def agreed(
    first: Iterable[Recording], second: Iterable[Recording], most: float
) -> tuple[list[Recording], list[tuple[Recording, float]]]:
    """Split the recordings of two teachers by whether their texts agree.

    Args:
        first: The recordings of which one is kept.
        second: The same audio with other texts; what is in one of the two only is left out.
        most: Largest share of the words by which two texts may differ.

    Returns:
        The recordings that agree, with `agreement` (1 minus the difference) among their other keys, and those that
        do not, with the difference.

    Raises:
        ManifestError: The two have no audio in common.
    """
    others = {recording.audio.resolve(): recording for recording in second}
    kept: list[Recording] = []
    differing: list[tuple[Recording, float]] = []
    common = 0
    for recording in first:
        other = others.get(recording.audio.resolve())
        if other is None:
            continue
        common += 1
        difference = word_difference(recording.text, other.text, recording.lang)
        if difference <= most:
            kept.append(replace(recording, extra=recording.extra | {"agreement": round(1 - difference, 3)}))
        else:
            differing.append((recording, difference))
    if not common:
        raise ManifestError("the two manifests have no audio in common: they must list the same files")
    return kept, differing


def word_difference(first: str, second: str, language: str = "") -> float:
    """Edits between the plain words of two texts, as a share of the longer one's words."""
    a, b = ([plain_word(word, language) for word in text.split()] for text in (first, second))
    a, b = [word for word in a if word], [word for word in b if word]
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / max(1, len(a), len(b))


def _decoded(raw: bytes) -> str:
    """Praat writes UTF-16 with a mark where a label is not ASCII."""
    return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
