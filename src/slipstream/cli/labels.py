"""`slipstream data transcribe`, `agree`, `align` and `import`: texts and word times for recordings."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import replace
from enum import Enum
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from slipstream.cli.console import counted
from slipstream.cli.extras import needs_extra
from slipstream.cli.left_out import LeftOut
from slipstream.cli.options import Backend, Device
from slipstream.errors import ConfigError, SlipstreamError

if TYPE_CHECKING:
    from slipstream.data.manifest import Recording

Manifest = Annotated[Path, typer.Argument(help="A JSONL manifest.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]


class Kind(str, Enum):
    """A format of word times."""

    whisper = "whisper"
    textgrid = "textgrid"
    ctm = "ctm"


def transcribe(
    manifest: Manifest,
    out: Out,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "--teacher",
            "-m",
            help="What transcribes: a Slipstream model (a name, a folder or a repository), or whisper:PATH_OR_NAME.",
        ),
    ],
    device: Device = "cpu",
    backend: Backend = "auto",
    slots: Annotated[int, typer.Option(min=1, help="Number of recordings to transcribe concurrently.")] = 8,
    least: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out recordings whose words have a lower mean probability.")
    ] = 0.0,
    streams: Annotated[int | None, typer.Option(min=1, hidden=True)] = None,
) -> None:
    """Transcribe recordings without a text (pseudo-labels), with word times, to train another model on.

    Recordings with a text stay as they are. Recordings in which no words are recognised are left out. The manifest
    keeps the mean probability of the words as `confidence`.
    """
    from slipstream.data.manifest import read_manifest, write_manifest

    recordings = list(read_manifest(manifest))
    need(recordings, f"{manifest}: has no recordings")
    untranscribed = [recording for recording in recordings if not recording.text]
    kept = [recording for recording in recordings if recording.text]
    left_out, silent, unsure = LeftOut(), 0, 0
    if model.startswith("whisper:"):
        labelled = _by_whisper(untranscribed, model.removeprefix("whisper:"), device, left_out)
    else:
        labelled = _by_model(untranscribed, model, device, backend, streams or slots, left_out)
    for recording in labelled:
        if not recording.words:
            silent += 1
        elif recording.extra["confidence"] < least:
            unsure += 1
        else:
            kept.append(recording)
    write_manifest(out, kept)
    transcribed = len(untranscribed) - silent - unsure - left_out.count
    doubtful = f", {unsure} with less confidence than {least:g}" if least else ""
    typer.echo(
        f"{counted(transcribed, 'recording')} transcribed; left out: {silent} without words{doubtful}, "
        f"{left_out.count} that cannot be read"
    )


def _by_whisper(recordings: list[Recording], model: str, device: str, left_out: LeftOut) -> list[Recording]:
    from slipstream.data.manifest import each
    from slipstream.data.whisper import Whisper

    teacher = Whisper(model, "cpu" if device == "auto" else device)
    return list(each(recordings, teacher.transcribe, left_out))


def _by_model(
    recordings: list[Recording], model: str, device: str, backend: str, slots: int, left_out: LeftOut
) -> list[Recording]:
    from slipstream.loading import load

    labelled = []
    with load(model, backend=backend, device=device, slots=slots, dtype="auto", mode="recordings") as transcriber:
        results = transcriber.transcribe_many([r.audio for r in recordings], return_exceptions=True)
        for recording, result in zip(recordings, results, strict=True):
            if isinstance(result, SlipstreamError):
                left_out(recording, result)
                continue
            words = result.words
            confidence = round(sum(word.confidence for word in words) / len(words), 3) if words else 0.0
            extra = recording.extra | {"confidence": confidence}
            labelled.append(replace(recording, text=result.text, words=words, seconds=result.duration, extra=extra))
    return labelled


def agree(
    first: Annotated[Path, typer.Argument(help="A manifest of one teacher, whose texts are kept.")],
    second: Annotated[Path, typer.Argument(help="The manifest of the other teacher, of the same audio.")],
    out: Out,
    most: Annotated[
        float,
        typer.Option(min=0, help="Largest share of the words, in lower case and without punctuation, that differ."),
    ] = 0.1,
) -> None:
    """Keep the recordings on whose text two teachers agree.

    Lines of `first` whose audio `second` lacks are left out. The manifest has the share of equal words as `agreement`.
    """
    from slipstream.data.manifest import read_manifest, write_manifest
    from slipstream.data.timed_words import agreed

    ours = list(read_manifest(first))
    kept, differing = agreed(ours, read_manifest(second), most)
    need(kept, f"{first} and {second}: the texts of no recording agree; --most {most:g} is the largest difference")
    write_manifest(out, kept)
    lacking = len(ours) - len(kept) - len(differing)
    missing = f"{len(differing)} that differ, {lacking} in one manifest only"
    typer.echo(f"{counted(len(kept), 'recording')} kept; left out: {missing}")


class _Finder(Protocol):
    """Finds word times; `least` is the fit below which a text is taken for another recording's."""

    least: float

    def align(self, recording: Recording) -> tuple[Recording, float]: ...


def align(
    manifest: Manifest,
    out: Out,
    aligner: Annotated[
        str,
        typer.Option(
            help="A built-in model, or the `codec` or `model` folder of a run on phones; ctc:PATH_OR_NAME for a CTC "
            "model of transformers, or a folder with model.onnx and vocab.json; whisper:PATH_OR_NAME."
        ),
    ] = "tiny",
    beside: Annotated[bool, typer.Option(help="Also write the times next to each audio file.")] = False,
    least: Annotated[
        float | None,
        typer.Option(
            help="Leave out recordings whose text fits less well. By phones (default -3.5) and letters (-3) the fit is "
            "a log-probability per frame: with the built-in model correct texts mostly get -0.3 to -2.5 (down to -4.5 "
            "for unusual voices), wrong ones -3 to -8. With Whisper (0.5) it is the share that it recognises."
        ),
    ] = None,
) -> None:
    """Find when each word is spoken, for recordings whose texts have no times.

    Recordings without a text stay as they are.
    """
    finder = _finder(aligner)
    _keep_fitting(manifest, out, finder.align, finder.least if least is None else least, "aligned", beside)


def _finder(aligner: str) -> _Finder:
    kind, _, name = aligner.partition(":")
    if kind == "whisper" and name:
        from slipstream.data.whisper import Whisper

        return Whisper(name)
    if kind == "ctc" and name:
        from slipstream.data.ctc import load_ctc

        return load_ctc(name)
    with needs_extra("train", "preparing data"):
        from slipstream.train.speech import load_aligner

    return load_aligner(aligner)


def import_words(
    manifest: Manifest,
    out: Out,
    words: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a file for each recording, named like its audio, or one CTM file for all. Default: the "
            "folder of the audio."
        ),
    ] = None,
    kind: Annotated[Kind | None, typer.Option("--format", help="Format of the files. Default: by their names.")] = None,
    least: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out recordings if a smaller share of their text has times.")
    ] = 0.8,
) -> None:
    """Import word times: JSON of Whisper or WhisperX, TextGrid of MFA or Praat, CTM of Kaldi and NeMo.

    The words stay as the text spells them. A recording without a text gets that of the import.
    """
    from slipstream.data.timed_words import SUFFIXES, import_times

    if words is not None and not words.exists():
        raise ConfigError(f"--words {words}: there is no such file or folder")

    def find(recording: Recording) -> tuple[Recording, float]:
        source = words or recording.audio.parent
        files = [source] if source.is_file() else [source / f"{recording.audio.stem}{s}" for s in SUFFIXES.values()]
        found = [
            name for name, suffix in SUFFIXES.items() for file in files if file.suffix == suffix and file.is_file()
        ]
        if kind is None and not found:
            expected = ", ".join(f"{recording.audio.stem}{suffix}" for suffix in SUFFIXES.values())
            raise SlipstreamError(f"{source} has none of {expected}")
        return import_times(recording, source, kind.value if kind else found[0])

    _keep_fitting(manifest, out, find, least, "imported", textless=True)


def _keep_fitting(
    manifest: Path,
    out: Path,
    find: Callable[[Recording], tuple[Recording, float]],
    least: float,
    done: str,
    beside: bool = False,
    textless: bool = False,
) -> None:
    """Write the recordings with what `find` gives, those without a text as they are unless it finds theirs too."""
    from slipstream.data import manifest as manifests

    kept, fits, left_out = [], [], LeftOut()

    def found(recording: Recording) -> tuple[Recording, float | None]:
        return find(recording) if recording.text.strip() or textless else (recording, None)

    for recording, fit in manifests.each(manifests.read_manifest(manifest), found, left_out):
        if fit is not None:
            fits.append(fit)
            if fit < least:
                left_out(recording, f"its text has a fit of {fit:.2f}, less than {least:g}: {recording.text!r}")
                continue
            if beside:
                manifests.write_alignment(recording)
        kept.append(recording)
    need(kept, f"{manifest}: no recording can be {done}")
    manifests.write_manifest(out, kept)
    fitting = sum(fit >= least for fit in fits)
    wordless = f"; {len(kept) - fitting} without text" if len(kept) > fitting else ""
    typer.echo(f"{counted(fitting, 'recording')} {done}, {left_out.count} left out{wordless}")
    if fits:
        typer.echo(f"fit: lowest {min(fits):.2f}, median {median(fits):.2f}, highest {max(fits):.2f}")


def need(things: Sized, otherwise: str) -> None:
    """Raise `SlipstreamError` when there is nothing to write."""
    if not len(things):
        raise SlipstreamError(otherwise)
