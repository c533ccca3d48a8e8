"""JSONL manifests of recordings, and the word times that lie beside an audio file.

A line of a manifest is an object: `audio` (path, relative to the manifest), `text` ("" where nothing is said), and,
where known, `words` (`[text, start, end]`, seconds), `phones` (`[name, start]`), `seconds`, `speaker`, `lang`,
`dataset`, `split`. Where a line has no words, a JSON file beside the audio is read, in the form of Kyutai's fine-tuning
tool: `{"alignments": [[text, [start, end], speaker], ...]}`. One without `alignments` is somebody else's.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar

from slipstream.audio import SAMPLE_RATE, load
from slipstream.data.tokenizer import plain_text
from slipstream.errors import AudioError, BackendError, SlipstreamError
from slipstream.events import Word
from slipstream.model.text import Tokenizer

OnProblem = Literal["skip", "fail"]
TIME_TOLERANCE = 0.1
"""Seconds by which a time may lie after the audio's end: aligners round to frames, codecs cut a little."""

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


class ManifestError(SlipstreamError):
    """A line of a manifest cannot be used; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One line of a manifest. `seconds` is None until the audio was read; `words`, and `phones` (name, start) in
    espeak-ng's mnemonics, are empty where times are unknown. `place` says which line of which manifest it was."""

    audio: Path
    text: str
    words: tuple[Word, ...] = ()
    phones: tuple[tuple[str, float], ...] = ()
    seconds: float | None = None
    speaker: str = ""
    lang: str = "en"
    dataset: str = ""
    split: str = ""
    place: str = field(default="", compare=False)

    def explain(self, problem: object) -> str:
        """`problem` as a sentence that names the recording: by its place, and once by its audio."""
        said = str(problem).removeprefix(f"{self.audio}: ")
        return ": ".join(part for part in (self.place, str(self.audio), said) if part)


@dataclass
class Report:
    """What `validate` found: how many recordings are good (`wordless`: of them, those in which nothing is said), and
    every problem by its kind."""

    good: int = 0
    wordless: int = 0
    seconds: float = 0.0
    problems: list[tuple[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many problems there are of each kind."""
        return dict(Counter(kind for kind, _ in self.problems))


def read_manifest(path: Path) -> Iterator[Recording]:
    """The recordings of a manifest. Raises `ManifestError` for a line that is not one."""
    for line in read_lines(path):
        if isinstance(line, ManifestError):
            raise line
        yield line


def read_lines(path: Path) -> Iterator[Recording | ManifestError]:
    """The recordings of a manifest, and in place of each line that is not one the error that says why.

    Raises `ManifestError` for a file that cannot be read as text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ManifestError(f"{path}, line {number}: not UTF-8; save the manifest in that encoding") from error
    # Not `splitlines`: JSON may hold other separators of lines, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _recording(line, path.parent, f"{path}, line {number}")
            except ManifestError as error:
                yield error


def matching(
    recordings: Iterable[Recording], source: object, *, dataset: str | None = None, split: str | None = None
) -> Iterator[Recording]:
    """The recordings of a dataset and a split (None: of any).

    Raises `ManifestError` at the end when there was none, with what there is in `source`.
    """
    wanted = {key: value for key, value in (("dataset", dataset), ("split", split)) if value is not None}
    there: set[tuple[str, ...]] = set()
    found = False
    for recording in recordings:
        values = tuple(getattr(recording, key) for key in wanted)
        there.add(values)
        if values == tuple(wanted.values()):
            found = True
            yield recording
    if not there:
        raise ManifestError(f"{source}: has no recordings")
    if not found:
        named = ", ".join("/".join(value or "(none)" for value in values) for values in sorted(there))
        asked = "/".join(wanted.values())
        raise ManifestError(f"{source}: no recording is of {'/'.join(wanted)} {asked!r}; there are {named}")


def each(
    items: Iterable[_Item],
    make: Callable[[_Item], _Made],
    on_error: Callable[[_Item, SlipstreamError], None] | None = None,
) -> Iterator[_Made]:
    """What `make` makes of each item. One that it cannot use goes to `on_error` with the error, and is left out.

    Raises the error without `on_error`, and a `BackendError` always: what is not installed is missing for all.
    """
    for item in items:
        try:
            made = make(item)
        except BackendError:
            raise
        except SlipstreamError as error:
            if on_error is None:
                raise
            on_error(item, error)
        else:
            yield made


def write_manifest(path: Path, recordings: Iterable[Recording]) -> None:
    """Write recordings, their audio relative to the manifest where it lies below it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for recording in recordings:
            out.write(json.dumps(_line(recording, path.parent.resolve()), ensure_ascii=False) + "\n")


def existing_recordings(path: Path) -> list[Recording]:
    """The recordings of a manifest, none where it is not there. Raises as `read_manifest` does."""
    return list(read_manifest(path)) if path.exists() else []


def add_to_manifest(path: Path, recordings: Iterable[Recording]) -> None:
    """Write recordings after those that the manifest has, if it is there, and in place of those of the same audio."""
    added = list(recordings)
    replaced = {recording.audio.resolve() for recording in added}
    kept = [earlier for earlier in existing_recordings(path) if earlier.audio.resolve() not in replaced]
    write_manifest(path, kept + added)


def write_alignment(recording: Recording) -> Path:
    """Write the words' times beside the audio, in the form of Kyutai's fine-tuning tool; gives the file's path."""
    path = recording.audio.with_suffix(".json")
    rows = [[word.text, [round(word.start, 3), round(word.end, 3)], "SPEAKER_MAIN"] for word in recording.words]
    path.write_text(json.dumps({"alignments": rows}, ensure_ascii=False), encoding="utf-8")
    return path


def validate(
    lines: Iterable[Recording | ManifestError], tokenizer: Tokenizer | None, on_problem: OnProblem
) -> tuple[list[Recording], Report]:
    """Read every recording's audio and check it against its text; gives the good ones and what was found.

    `lines`: of `read_lines`. Problems: `line` (is no recording), `audio` (cannot be decoded, or holds nothing), `text`
    (no token comes out of it), `words` (are not those of the text), `times` (lie outside the audio, or go back).
    Raises `ManifestError` at the first when `on_problem` is "fail".
    """
    report, good = Report(), []
    for line in lines:
        try:
            checked = _checked(line, tokenizer)
        except _Problem as problem:
            if on_problem == "fail":
                raise ManifestError(f"{problem.kind}: {problem}") from problem
            report.problems.append((problem.kind, str(problem)))
        else:
            good.append(checked)
            report.good += 1
            report.wordless += not checked.text.strip()
            report.seconds += checked.seconds or 0.0
    return good, report


class _Problem(Exception):
    """What is wrong with a line, and of which kind that is."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _checked(line: Recording | ManifestError, tokenizer: Tokenizer | None) -> Recording:
    """The recording with its length. Raises `_Problem`."""
    if isinstance(line, ManifestError):
        raise _Problem("line", str(line))
    try:
        samples = load(line.audio)
    except AudioError as error:
        raise _Problem("audio", line.explain(error)) from error
    seconds = samples.shape[-1] / SAMPLE_RATE
    checks = (
        ("audio", "" if seconds else "holds no samples"),
        ("text", _text_problem(line.text, tokenizer)),
        ("words", _words_problem(line)),
        ("times", _times_problem([(word.text, word.start, word.end) for word in line.words], seconds)),
        ("times", _times_problem([(name, start, start) for name, start in line.phones], seconds)),
    )
    for kind, problem in checks:
        if problem:
            raise _Problem(kind, line.explain(problem))
    return replace(line, seconds=seconds)


def _text_problem(text: str, tokenizer: Tokenizer | None) -> str:
    plain = plain_text(text)
    if text.strip() and (not plain or (tokenizer is not None and not tokenizer.encode(plain))):
        return f"no token comes out of {text!r}"
    return ""


def _words_problem(recording: Recording) -> str:
    """Words are compared letter by letter: how a text is cut into them is the aligner's affair."""
    if not recording.words:
        return ""
    said, told = (_letters(text) for text in (" ".join(word.text for word in recording.words), recording.text))
    if said == told:
        return ""
    first = next((i for i, (a, b) in enumerate(zip(said, told, strict=False)) if a != b), min(len(said), len(told)))
    here = slice(max(0, first - 10), first + 20)
    return f"the words are not the text's: {said[here]!r} in the words, {told[here]!r} in the text"


def _letters(text: str) -> str:
    return plain_text(text).translate(str.maketrans("", "", " '-"))


def _times_problem(spans: list[tuple[str, float, float]], seconds: float) -> str:
    for name, start, end in spans:
        if not 0 <= start <= end <= seconds + TIME_TOLERANCE:  # false for NaN, too
            return f"{name!r} from {start} to {end} s in {seconds:.2f} s of audio"
    for (before, earlier, _), (name, start, _) in pairwise(spans):
        if start < earlier:
            return f"{name!r} at {start} s comes after {before!r} at {earlier} s: they must be in order of time"
    return ""


def _recording(line: str, folder: Path, place: str) -> Recording:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{place}: not JSON: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("audio"), str) or not isinstance(raw.get("text"), str):
        raise ManifestError(f"{place}: expected an object with the strings audio and text")
    for key in ("speaker", "lang", "dataset", "split"):
        if not isinstance(raw.get(key), (str, NoneType)):
            raise ManifestError(f"{place}: {key} must be a string, or null, not {json.dumps(raw[key])}")
    seconds = raw.get("seconds")
    if seconds is not None and not (type(seconds) in (int, float) and 0 <= seconds < math.inf):
        raise ManifestError(f"{place}: seconds must be a number from 0, or null, not {json.dumps(seconds)}")
    audio = folder / raw["audio"]
    try:
        words = tuple(Word(str(w[0]), float(w[1]), float(w[2])) for w in raw.get("words") or ())
        phones = tuple((str(p[0]), float(p[1])) for p in raw.get("phones") or ())
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise ManifestError(
            f"{place}: words must be [text, start, end] and phones [name, start], in seconds"
        ) from error
    return Recording(
        audio,
        raw["text"],
        words or _beside(audio, place),
        phones,
        seconds,
        raw.get("speaker") or "",
        raw.get("lang") or "en",
        raw.get("dataset") or "",
        raw.get("split") or "",
        place,
    )


def _beside(audio: Path, place: str) -> tuple[Word, ...]:
    path = audio.parent / f"{audio.stem}.json"
    if not path.is_file():
        return ()
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(raw, dict) or "alignments" not in raw:
            return ()
        return tuple(Word(str(text), float(span[0]), float(span[1])) for text, span, *_ in raw["alignments"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ManifestError(f"{place}: {path}, beside the audio, cannot be read as JSON: {error}") from error
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise ManifestError(
            f"{place}: {path}, beside the audio: alignments must be [[text, [start, end], speaker], ...], in seconds"
        ) from error


def _line(recording: Recording, folder: Path) -> dict[str, Any]:
    audio = recording.audio.resolve()
    line: dict[str, Any] = {
        "audio": str(audio.relative_to(folder) if audio.is_relative_to(folder) else audio),
        "text": recording.text,
        "words": [[w.text, round(w.start, 3), round(w.end, 3)] for w in recording.words],
        "phones": [[name, round(start, 3)] for name, start in recording.phones],
        "seconds": recording.seconds,
        "speaker": recording.speaker,
        "lang": recording.lang,
        "dataset": recording.dataset,
        "split": recording.split,
    }
    return {key: value for key, value in line.items() if key == "text" or value not in (None, "", [])}
