"""JSONL manifests of recordings, and the word times that lie beside an audio file.

A line of a manifest is an object: `audio` (path, relative to the manifest), `text` ("" where nothing is said), and,
where known, `words` (`[text, start, end]`, seconds), `phones` (`[name, start]`), `seconds`, `speaker`, `lang`,
`dataset`, `split`. Where a line has no words, a JSON file beside the audio is read, in the form of Kyutai's fine-tuning
tool: `{"alignments": [[text, [start, end], speaker], ...]}`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from slipstream.audio import load
from slipstream.errors import AudioError, SlipstreamError
from slipstream.text import Tokenizer
from slipstream.train.tokenizer import plain_text
from slipstream.types import Word

OnProblem = Literal["skip", "fail"]


class ManifestError(SlipstreamError):
    """A line of a manifest cannot be used; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One line of a manifest. `seconds` is None until the audio was read; `words`, and `phones` (name, start) in
    espeak-ng's mnemonics, are empty where times are unknown."""

    audio: Path
    text: str
    words: tuple[Word, ...] = ()
    phones: tuple[tuple[str, float], ...] = ()
    seconds: float | None = None
    speaker: str = ""
    lang: str = "en"
    dataset: str = ""
    split: str = ""


@dataclass
class Report:
    """What `validate` found: how many recordings are good, and every problem by its kind."""

    good: int = 0
    seconds: float = 0.0
    problems: list[tuple[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many problems there are of each kind."""
        return dict(Counter(kind for kind, _ in self.problems))


def read_manifest(path: Path) -> Iterator[Recording]:
    """The recordings of a manifest. Raises `ManifestError` for a line that is not one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _recording(line, path, number)


def write_manifest(path: Path, recordings: Iterable[Recording]) -> None:
    """Write recordings, their audio relative to the manifest where it lies below it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for recording in recordings:
            out.write(json.dumps(_line(recording, path.parent.resolve()), ensure_ascii=False) + "\n")


def write_alignment(recording: Recording) -> Path:
    """Write the words' times beside the audio, in the form of Kyutai's fine-tuning tool; gives the file's path."""
    path = recording.audio.with_suffix(".json")
    rows = [[word.text, [round(word.start, 3), round(word.end, 3)], "SPEAKER_MAIN"] for word in recording.words]
    path.write_text(json.dumps({"alignments": rows}, ensure_ascii=False), encoding="utf-8")
    return path


def validate(
    recordings: Iterable[Recording], tokenizer: Tokenizer | None, on_problem: OnProblem
) -> tuple[list[Recording], Report]:
    """Read every recording's audio and check it against its text; gives the good ones and what was found.

    Problems: `audio` (cannot be decoded, or holds nothing), `text` (no token comes out of it), `times` (a word lies
    outside the audio or ends before it starts). Raises `ManifestError` at the first when `on_problem` is "fail".
    """
    report, good = Report(), []
    for recording in recordings:
        problem, seconds = _problem(recording, tokenizer)
        if problem is None:
            good.append(replace(recording, seconds=seconds))
            report.good += 1
            report.seconds += seconds
        elif on_problem == "fail":
            raise ManifestError(f"{recording.audio}: {problem[0]}: {problem[1]}")
        else:
            report.problems.append((problem[0], f"{recording.audio}: {problem[1]}"))
    return good, report


def _problem(recording: Recording, tokenizer: Tokenizer | None) -> tuple[tuple[str, str] | None, float]:
    try:
        samples = load(recording.audio)
    except AudioError as error:
        return ("audio", str(error)), 0.0
    seconds = samples.shape[-1] / 24_000
    if not seconds:
        return ("audio", "holds no samples"), 0.0
    plain = plain_text(recording.text)
    if not plain or (tokenizer is not None and not tokenizer.encode(plain)):
        return ("text", f"no token comes out of {recording.text!r}"), seconds
    for word in recording.words:
        if word.start < 0 or word.end < word.start or word.start > seconds:
            return (
                "times",
                f"{word.text!r} from {word.start} to {word.end} s in {seconds:.2f} s of audio",
            ), seconds
    return None, seconds


def _recording(line: str, path: Path, number: int) -> Recording:
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("audio"), str) or not isinstance(raw.get("text"), str):
        raise ManifestError(f"{path}, line {number}: expected an object with the strings audio and text")
    audio = path.parent / raw["audio"]
    try:
        words = tuple(Word(str(w[0]), float(w[1]), float(w[2])) for w in raw.get("words") or ())
        words = words or _beside(audio)
        phones = tuple((str(p[0]), float(p[1])) for p in raw.get("phones") or ())
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ManifestError(
            f"{path}, line {number}: words must be [text, start, end] and phones [name, start], in seconds"
        ) from error
    return Recording(
        audio,
        raw["text"],
        words,
        phones,
        raw.get("seconds"),
        str(raw.get("speaker", "")),
        str(raw.get("lang", "en")),
        str(raw.get("dataset", "")),
        str(raw.get("split", "")),
    )


def _beside(audio: Path) -> tuple[Word, ...]:
    path = audio.with_suffix(".json")
    if not path.exists():
        return ()
    raw = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Word(str(text), float(span[0]), float(span[1])) for text, span, *_ in raw["alignments"])


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
