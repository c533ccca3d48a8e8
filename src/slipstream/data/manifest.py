"""JSONL manifests of recordings, and files of word times next to the audio.

A line of a manifest is an object: `audio` (path, relative to the manifest), `text` ("" for audio without speech), and,
where known, `words` (`[text, start, end]`, seconds), `phones` (`[name, start]`), `seconds`, `speaker`, `lang`,
`dataset`, `split`. Other keys are kept. Where a line has no words, they are read from a JSON file next to the audio, in
the format of Kyutai's fine-tuning tool: `{"alignments": [[text, [start, end], speaker], ...]}`. A file without
`alignments` is ignored.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slipstream.audio import SAMPLE_RATE, load
from slipstream.data.tokenizer import MOST_MISSING, lost_letters, plain_text, too_few_letters, writes_plain
from slipstream.errors import AudioError, BackendError, SlipstreamError
from slipstream.events import Word
from slipstream.model.text import Tokenizer

OnProblem = Literal["skip", "fail"]
TIME_TOLERANCE = 0.1
"""Seconds by which a time may exceed the audio: aligners round to frames, and codecs cut a little."""

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


class ManifestError(SlipstreamError):
    """A line of a manifest cannot be used. The message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One line of a manifest.

    Attributes:
        words: empty where times are unknown.
        phones: (name, start) in espeak-ng's mnemonics, empty where times are unknown.
        seconds: length of the audio; None until it was read.
        place: file and line number, for messages.
        extra: other keys of the line, which are kept when the manifest is written.
    """

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
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def explain(self, problem: object) -> str:
        """Describe `problem` with the recording's place and, once, its audio file."""
        text = str(problem).removeprefix(f"{self.audio}: ")
        return ": ".join(part for part in (self.place, str(self.audio), text) if part)


@dataclass
class Report:
    """What `validate` found: the number of good recordings, how many of them are without text (`wordless`), and every
    problem with its kind."""

    good: int = 0
    wordless: int = 0
    seconds: float = 0.0
    problems: list[tuple[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Count the problems of each kind."""
        return dict(Counter(kind for kind, _ in self.problems))


def read_manifest(path: Path) -> Iterator[Recording]:
    """Read the recordings of a manifest. Raises `ManifestError` for a line that is not a recording."""
    for line in read_lines(path):
        if isinstance(line, ManifestError):
            raise line
        yield line


def read_lines(path: Path) -> Iterator[Recording | ManifestError]:
    """Read the recordings of a manifest; a line that is not a recording yields the error instead.

    Raises `ManifestError` for a file that cannot be read as text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ManifestError(f"{path}, line {number}: not UTF-8; save the manifest in that encoding") from error
    # Not `splitlines`: JSON strings may contain other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield parse_recording(line, path.parent, f"{path}, line {number}")
            except ManifestError as error:
                yield error


def matching(
    recordings: Iterable[Recording], source: object, *, dataset: str | None = None, split: str | None = None
) -> Iterator[Recording]:
    """Select the recordings of a dataset and a split (None: of any).

    Raises `ManifestError` at the end if there was none; the message lists what `source` has.
    """
    wanted = {key: value for key, value in (("dataset", dataset), ("split", split)) if value is not None}
    available: set[tuple[str, ...]] = set()
    found = False
    for recording in recordings:
        values = tuple(getattr(recording, key) for key in wanted)
        available.add(values)
        if values == tuple(wanted.values()):
            found = True
            yield recording
    if not available:
        raise ManifestError(f"{source}: has no recordings")
    if not found:
        named = ", ".join("/".join(value or "(none)" for value in values) for values in sorted(available))
        asked = "/".join(wanted.values())
        raise ManifestError(f"{source}: no recording is of {'/'.join(wanted)} {asked!r}; there are {named}")


def each(
    items: Iterable[_Item],
    make: Callable[[_Item], _Made],
    on_error: Callable[[_Item, SlipstreamError], None] | None = None,
) -> Iterator[_Made]:
    """Apply `make` to each item. When it fails, `on_error` gets the item and the error, and the item is left out.

    Raises the error if there is no `on_error`, and always a `BackendError`: a missing package fails for every item.
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
    """Write recordings, with audio paths relative to the manifest where the audio is below its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for recording in recordings:
            out.write(json.dumps(_line(recording, path.parent.resolve()), ensure_ascii=False) + "\n")


def existing_recordings(path: Path) -> list[Recording]:
    """Read the recordings of a manifest if it exists. Raises as `read_manifest` does."""
    return list(read_manifest(path)) if path.exists() else []


def add_to_manifest(path: Path, recordings: Iterable[Recording]) -> None:
    """Append recordings to a manifest, or create it; recordings of the same audio are replaced."""
    added = list(recordings)
    replaced = {recording.audio.resolve() for recording in added}
    kept = [earlier for earlier in existing_recordings(path) if earlier.audio.resolve() not in replaced]
    write_manifest(path, kept + added)


def write_alignment(recording: Recording) -> Path:
    """Write the words' times next to the audio, in the format of Kyutai's fine-tuning tool; return the file's path."""
    path = recording.audio.with_suffix(".json")
    rows = [[word.text, [round(word.start, 3), round(word.end, 3)], "SPEAKER_MAIN"] for word in recording.words]
    path.write_text(json.dumps({"alignments": rows}, ensure_ascii=False), encoding="utf-8")
    return path


def validate(
    lines: Iterable[Recording | ManifestError], tokenizer: Tokenizer | None, on_problem: OnProblem
) -> tuple[list[Recording], Report]:
    """Read every recording's audio and check it against its text; return the good recordings and a report.

    `lines`: from `read_lines`. Kinds of problems: `line` (not a recording), `audio` (cannot be decoded, or is empty),
    `text` (has no tokens), `words` (differ from the text), `times` (outside the audio, or not in order).
    Raises `ManifestError` at the first problem if `on_problem` is "fail", and if `tokenizer` omits more than
    `MOST_MISSING` of the good texts' letters.
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
    if tokenizer is not None:
        _check_letters(good, tokenizer)
    return good, report


class _Problem(Exception):
    """A problem of a line, and its kind."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _checked(line: Recording | ManifestError, tokenizer: Tokenizer | None) -> Recording:
    """Return the recording with its length. Raises `_Problem`."""
    if isinstance(line, ManifestError):
        raise _Problem("line", str(line))
    try:
        samples = load(line.audio)
    except AudioError as error:
        raise _Problem("audio", line.explain(error)) from error
    seconds = samples.shape[-1] / SAMPLE_RATE
    checks = (
        ("audio", "" if seconds else "has no samples"),
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
        return f"the text {text!r} has no tokens"
    return ""


def _check_letters(recordings: Iterable[Recording], tokenizer: Tokenizer) -> None:
    """Raise `ManifestError` if the vocabulary omits too many of the texts' letters."""
    plain = writes_plain(tokenizer)
    for language, of_language in groupby(sorted(recordings, key=lambda one: one.lang), lambda one: one.lang):
        lost = lost_letters((one.text for one in of_language), tokenizer, plain, language)
        if lost.share > MOST_MISSING:
            raise ManifestError(too_few_letters(lost, language))


def _words_problem(recording: Recording) -> str:
    """Compare words letter by letter: aligners may split a text differently."""
    if not recording.words:
        return ""
    words, text = (_letters(text) for text in (" ".join(word.text for word in recording.words), recording.text))
    if words == text:
        return ""
    first = next((i for i, (a, b) in enumerate(zip(words, text, strict=False)) if a != b), min(len(words), len(text)))
    here = slice(max(0, first - 10), first + 20)
    return f"the words differ from the text: {words[here]!r} in the words, {text[here]!r} in the text"


def _letters(text: str) -> str:
    return plain_text(text).translate(str.maketrans("", "", " '-"))


def _times_problem(spans: list[tuple[str, float, float]], seconds: float) -> str:
    for name, start, end in spans:
        if not 0 <= start <= end <= seconds + TIME_TOLERANCE:  # also false for NaN
            return f"{name!r} from {start} to {end} s in {seconds:.2f} s of audio"
    for (before, earlier, _), (name, start, _) in pairwise(spans):
        if start < earlier:
            return f"{name!r} at {start} s comes after {before!r} at {earlier} s: they must be in chronological order"
    return ""


class _Line(BaseModel):
    """The known keys of a line; other keys are kept in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow")

    audio: str
    text: str
    words: list[tuple[str, float, float]] | None = None
    phones: list[tuple[str, float]] | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    speaker: str | None = None
    lang: str | None = None
    dataset: str | None = None
    split: str | None = None


_EXPECTED = {
    "words": "a list of [text, start, end] in seconds, or null",
    "phones": "a list of [name, start] in seconds, or null",
    "seconds": "a number from 0, or null",
}


def parse_recording(line: str, folder: Path, place: str) -> Recording:
    """Read a line of a manifest; its audio is relative to `folder`, and `place` names it in errors."""
    try:
        raw = _Line.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "json_invalid":
            raise ManifestError(f"{place}: not JSON: {problem['ctx']['error']}") from error
        key = problem["loc"][0] if problem["loc"] else "audio"
        if key in ("audio", "text"):
            raise ManifestError(f"{place}: expected an object with the strings audio and text") from error
        expected = _EXPECTED.get(str(key), "a string, or null")
        raise ManifestError(f"{place}: {key} must be {expected}, not {json.dumps(problem['input'])}") from error
    audio = folder / raw.audio
    return Recording(
        audio,
        raw.text,
        tuple(Word(*word) for word in raw.words or ()) or _alignment_file(audio, place),
        tuple(raw.phones or ()),
        raw.seconds,
        raw.speaker or "",
        raw.lang or "en",
        raw.dataset or "",
        raw.split or "",
        place,
        raw.model_extra or {},
    )


def _alignment_file(audio: Path, place: str) -> tuple[Word, ...]:
    """The words of the JSON file next to the audio, if there is one with `alignments`."""
    path = audio.parent / f"{audio.stem}.json"
    if not path.is_file():
        return ()
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(raw, dict) or "alignments" not in raw:
            return ()
        return tuple(Word(str(text), float(span[0]), float(span[1])) for text, span, *_ in raw["alignments"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ManifestError(f"{place}: {path}, next to the audio, cannot be read as JSON: {error}") from error
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise ManifestError(
            f"{place}: {path}, next to the audio: alignments must be [[text, [start, end], speaker], ...], in seconds"
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
    known = {key: value for key, value in line.items() if key == "text" or value not in (None, "", [])}
    return known | recording.extra
