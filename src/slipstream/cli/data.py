"""`slipstream data`: manifests checked, aligned, made by synthesisers, and packed for training."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from enum import Enum
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli.extras import needs_extra
from slipstream.cli.left_out import LeftOut
from slipstream.cli.options import Backend, Device
from slipstream.errors import ConfigError, SlipstreamError

if TYPE_CHECKING:
    from slipstream.data.manifest import Recording

app = typer.Typer(help="Prepare training data.", no_args_is_help=True)
Manifest = Annotated[Path, typer.Argument(help="A JSONL manifest.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write.")]
Exclude = Annotated[
    Path | None, typer.Option(help="A manifest of test recordings: leave out every sentence that is one of theirs.")
]


class OnProblem(str, Enum):
    """What a bad recording does."""

    skip = "skip"
    fail = "fail"


class Engine(str, Enum):
    """The synthesisers."""

    espeak = "espeak-ng"
    flite = "flite"
    festival = "festival"
    pico = "pico"
    rhvoice = "rhvoice"


@app.command()
def validate(
    manifest: Manifest,
    tokenizer: Annotated[Path | None, typer.Option(help="Also ask that each text has tokens.")] = None,
    on_problem: Annotated[OnProblem, typer.Option(help="Skip a bad recording, or fail at the first.")] = OnProblem.skip,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the good recordings here.")] = None,
) -> None:
    """Read all audio of a manifest, and name what is wrong: lines that are no recording, audio that cannot be read,
    texts without tokens, words that are not the text's, times outside the audio or out of order."""
    from slipstream.data import manifest as manifests
    from slipstream.model.text import Tokenizer

    spm = Tokenizer(tokenizer) if tokenizer else None
    good, report = manifests.validate(manifests.read_lines(manifest), spm, on_problem.value)
    for kind, message in report.problems:
        typer.echo(f"{kind}: {message}", err=True)
    counts = ", ".join(f"{n} with bad {kind}" for kind, n in report.counts().items()) or "none bad"
    wordless = f" ({report.wordless} of them have no words to say)" if report.wordless else ""
    typer.echo(f"{report.good} good recordings{wordless}, {_duration(report.seconds)}; {counts}")
    if out is not None:
        manifests.write_manifest(out, good)


@app.command()
def transcribe(
    manifest: Manifest,
    out: Out,
    model: Annotated[str, typer.Option("--model", "-m", help="Who hears: a name, a folder, or a repository.")],
    device: Device = "cpu",
    backend: Backend = "auto",
    streams: Annotated[int, typer.Option(help="Recordings heard side by side.")] = 8,
) -> None:
    """Give recordings without a text what a model hears in them, with the words' times: to train another model on.

    Those with a text stay as they are; those in which nothing is heard are left out.
    """
    from dataclasses import replace

    from slipstream.data.manifest import read_manifest, write_manifest
    from slipstream.loading import load

    recordings = list(read_manifest(manifest))
    untold = [recording for recording in recordings if not recording.text]
    kept = [recording for recording in recordings if recording.text]
    left_out = LeftOut()
    with load(model, backend=backend, device=device, slots=streams, dtype="auto") as transcriber:
        results = transcriber.transcribe_many([r.audio for r in untold], return_exceptions=True)
        for recording, result in zip(untold, results, strict=True):
            if isinstance(result, SlipstreamError):
                left_out(recording, result)
            elif result.words:
                kept.append(replace(recording, text=result.text, words=result.words, seconds=result.duration))
    write_manifest(out, kept)
    silent = len(recordings) - len(kept) - left_out.count
    told = len(untold) - silent - left_out.count
    typer.echo(
        f"{told} recordings transcribed; left out: {silent} in which nothing is heard, "
        f"{left_out.count} that cannot be read"
    )


@app.command()
def align(
    manifest: Manifest,
    out: Out,
    aligner: Annotated[
        str, typer.Option(help="A built-in model, or the `codec` or `model` folder of a run on phones.")
    ] = "tiny",
    beside: Annotated[bool, typer.Option(help="Also write the times beside each audio file.")] = False,
    least: Annotated[
        float,
        typer.Option(
            help="Leave out what fits worse than this log-probability a frame. With the built-in model right texts "
            "mostly get -0.3 to -2.5 (down to -4.5 in voices strange to it), wrong ones -3 to -8."
        ),
    ] = -3.5,
) -> None:
    """Find when each word is spoken, for recordings whose texts have no times.

    Those without a text stay as they are.
    """
    with needs_extra("train", "preparing data"):
        from slipstream.data import manifest as manifests
        from slipstream.train.speech import load_aligner

    finder, kept, fits, left_out = load_aligner(aligner), [], [], LeftOut()

    def find(recording: Recording) -> tuple[Recording, float | None]:
        return finder.align(recording) if recording.text.strip() else (recording, None)

    for recording, fit in manifests.each(manifests.read_manifest(manifest), find, left_out):
        if fit is not None:
            fits.append(fit)
            if fit < least:
                left_out(recording, f"its text fits at {fit:.2f} only: {recording.text!r}")
                continue
            if beside:
                manifests.write_alignment(recording)
        kept.append(recording)
    _need(kept, f"{manifest}: not one recording can be aligned")
    manifests.write_manifest(out, kept)
    aligned = sum(fit >= least for fit in fits)
    wordless = f"; {len(kept) - aligned} have no words to align" if len(kept) > aligned else ""
    typer.echo(f"{aligned} recordings aligned, {left_out.count} left out{wordless}")
    if fits:
        typer.echo(f"fit: lowest {min(fits):.2f}, median {median(fits):.2f}, highest {max(fits):.2f}")


@app.command()
def cut(
    manifest: Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the audio and manifest.jsonl.")],
    seconds: Annotated[float, typer.Option(min=1, help="The longest piece; shorter than a row of training.")] = 10.0,
) -> None:
    """Cut long recordings at their pauses, by the words' times, so that a row of training holds them."""
    with needs_extra("train", "preparing data"):
        from slipstream.data.manifest import each, read_manifest, write_manifest
        from slipstream.data.prepare import cut as cut_recording

    left_out = LeftOut()
    numbered = enumerate(read_manifest(manifest))
    cuts = each(
        numbered,
        lambda item: list(cut_recording(item[1], out, seconds, item[0])),
        lambda item, problem: left_out(item[1], problem),
    )
    pieces = [piece for parts in cuts for piece in parts]
    _need(pieces, f"{manifest}: there is nothing to cut")
    write_manifest(out / "manifest.jsonl", pieces)
    longer = sum((piece.seconds or 0) > seconds for piece in pieces)
    typer.echo(f"{_summary(pieces, 'recordings')} in {out}; {left_out.count} left out")
    if longer:
        typer.echo(f"{longer} pieces stay longer than {seconds:g} s: one word alone cannot be cut")


@app.command()
def synthesise(
    texts: Annotated[Path, typer.Argument(help="A sentence a line, plain or gzipped.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the audio and manifest.jsonl.")],
    engine: Engine = Engine.espeak,
    language: Annotated[str, typer.Option("--language", "-l", help="en or fr.")] = "en",
    limit: Annotated[int | None, typer.Option(min=1, help="Speak only so many sentences.")] = None,
    start: Annotated[int, typer.Option(min=0, help="Sentences to pass over first.")] = 0,
    clean: Annotated[bool, typer.Option(help="No rooms, noise or telephone lines.")] = False,
    exclude: Exclude = None,
    seed: int = 0,
) -> None:
    """Make recordings: many voices, speeds, pitches and rooms.

    espeak-ng tells when each word and phone is spoken, flite and festival each word; `align` finds it for the others.
    Recordings that the folder's manifest has already stay, but for those that are made anew.
    """
    with needs_extra("train", "preparing data"):
        from slipstream.data.augment import WaveAugment
        from slipstream.data.manifest import add_to_manifest, existing_recordings
        from slipstream.data.prepare import SynthesisOptions, excluded, read_texts, synthesise_texts
        from slipstream.data.tokenizer import plain_text

    augment = None if clean else WaveAugment()
    options = SynthesisOptions(engine.value, language, augment=augment, seed=seed)
    everything, left_out = read_texts(texts), LeftOut()
    sentences = everything[start : None if limit is None else start + limit]
    unwanted = excluded(exclude) if exclude else set()
    sentences = [text for text in sentences if plain_text(text) not in unwanted]
    _need(sentences, f"{texts}: has {len(everything)} sentences, and --start {start} passes over all of them")
    existing_recordings(out / "manifest.jsonl")  # one that cannot be read is better found out now than at the end

    def refuse(numbered: tuple[int, str], error: SlipstreamError) -> None:
        left_out.name(f"{texts}, sentence {numbered[0] + 1}: {error}")

    recordings = list(synthesise_texts(sentences, out, options, start, refuse))
    _need(recordings, f"{texts}: {engine.value} can speak no sentence of it")
    add_to_manifest(out / "manifest.jsonl", recordings)
    typer.echo(f"{_summary(recordings, 'recordings')} in {out}; {left_out.count} sentences left out")


@app.command()
def sounds(
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the audio and manifest.jsonl.")],
    hours: Annotated[float, typer.Option(help="How much to make.")] = 1.0,
    languages: Annotated[str, typer.Option(help="Of the speech that they will lie between.")] = "en,fr",
    seed: int = 0,
) -> None:
    """Make sounds without words (music, drums, hum, tones, noises), so that a model learns to write nothing in them."""
    with needs_extra("train", "preparing data"):
        from slipstream.data.manifest import add_to_manifest
        from slipstream.data.sounds import make_sounds

    recordings = list(make_sounds(out, hours, tuple(languages.split(",")), seed))
    add_to_manifest(out / "manifest.jsonl", recordings)
    typer.echo(f"{_summary(recordings, 'sounds')} in {out}")


@app.command()
def pack(
    manifest: Manifest,
    out: Out,
    model: Annotated[str | None, typer.Option(help="Pack the tokens of this checkpoint's codec.")] = None,
    config: Annotated[Path | None, typer.Option(help="Pack log-mel frames for this TOML file's codec.")] = None,
    samples: Annotated[bool, typer.Option("--samples", help="Pack samples, for a waveform codec.")] = False,
    split: Annotated[str | None, typer.Option(help="Only recordings of this split.")] = None,
    exclude: Exclude = None,
    device: str = "cpu",
) -> None:
    """Write recordings as log-mel frames, codec tokens or samples, ready to train on."""
    with needs_extra("train", "preparing data"):
        from slipstream.data.manifest import matching, read_manifest
        from slipstream.data.packs import write_pack
        from slipstream.data.prepare import excluded, mel_items, sample_items, token_items
        from slipstream.data.tokenizer import plain_text
        from slipstream.train.launch import load_codec
        from slipstream.train.setup import mel_config

    if [model is not None, config is not None, samples].count(True) != 1:
        raise ConfigError("give one of --model (tokens), --config (log-mel frames) and --samples")
    recordings, left_out = list(matching(read_manifest(manifest), manifest, split=split)), LeftOut()
    if exclude:
        unwanted = excluded(exclude)
        recordings = [one for one in recordings if plain_text(one.text) not in unwanted]
    if model is not None:
        count = write_pack(out, *token_items(recordings, load_codec(model), device, left_out))
    elif config is not None:
        count = write_pack(out, *mel_items(recordings, mel_config(config), on_error=left_out))
    else:
        count = write_pack(out, *sample_items(recordings, on_error=left_out))
    typer.echo(f"{count} recordings in {out}; {left_out.count} left out")


def _need(things: Sized, otherwise: str) -> None:
    """Raise `SlipstreamError` when there is nothing of what a command is to write."""
    if not len(things):
        raise SlipstreamError(otherwise)


def _summary(recordings: Sequence[Recording], name: str) -> str:
    return f"{len(recordings)} {name}, {_duration(sum(recording.seconds or 0 for recording in recordings))}"


def _duration(seconds: float) -> str:
    """In the largest unit that leaves a number above one."""
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
