"""`slipstream data`: manifests checked, aligned, made by synthesisers, and packed for training."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli.extras import needs_extra
from slipstream.cli.options import Backend, Device

app = typer.Typer(help="Prepare training data.", no_args_is_help=True)
Manifest = Annotated[Path, typer.Argument(help="A JSONL manifest.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write.")]


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
    """Read all audio of a manifest, and name what is wrong: audio, text without tokens, times outside the audio."""
    from slipstream.text import Tokenizer
    from slipstream.train import manifest as manifests

    spm = Tokenizer(tokenizer) if tokenizer else None
    good, report = manifests.validate(manifests.read_manifest(manifest), spm, on_problem.value)
    for kind, message in report.problems:
        typer.echo(f"{kind}: {message}", err=True)
    counts = ", ".join(f"{n} with bad {kind}" for kind, n in report.counts().items()) or "none bad"
    typer.echo(f"{report.good} good recordings, {report.seconds / 3600:.2f} h; {counts}")
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

    from slipstream.errors import SlipstreamError
    from slipstream.loading import load
    from slipstream.train.manifest import read_manifest, write_manifest

    recordings = list(read_manifest(manifest))
    untold = [recording for recording in recordings if not recording.text]
    kept = [recording for recording in recordings if recording.text]
    failed = 0
    with load(model, backend=backend, device=device, slots=streams, dtype="auto") as transcriber:
        results = transcriber.transcribe_many([r.audio for r in untold], return_exceptions=True)
        for recording, result in zip(untold, results, strict=True):
            if isinstance(result, SlipstreamError):
                typer.echo(f"{recording.audio}: {result}", err=True)
                failed += 1
            elif result.words:
                kept.append(replace(recording, text=result.text, words=result.words, seconds=result.duration))
    write_manifest(out, kept)
    silent = len(recordings) - len(kept) - failed
    typer.echo(
        f"{len(untold) - silent - failed} recordings transcribed; left out: {silent} in which nothing is heard, "
        f"{failed} that cannot be read"
    )


@app.command()
def align(
    manifest: Manifest,
    out: Out,
    aligner: Annotated[
        str, typer.Option(help="A built-in model, or the `codec` or `model` folder of a run on phones.")
    ] = "tiny",
    beside: Annotated[bool, typer.Option(help="Also write the times beside each audio file.")] = False,
    least: Annotated[float, typer.Option(help="Leave out what fits worse than this log-probability a frame.")] = -6.0,
) -> None:
    """Find when each word is spoken, for recordings whose texts have no times."""
    with needs_extra("train", "preparing data"):
        from slipstream.errors import SlipstreamError
        from slipstream.train import manifest as manifests
        from slipstream.train.speech import load_aligner

    finder, kept, left = load_aligner(aligner), [], 0
    for recording in manifests.read_manifest(manifest):
        try:
            aligned, score = finder.align(recording)
        except SlipstreamError as error:
            typer.echo(f"{recording.audio}: {error}", err=True)
            score = float("-inf")
        if score < least:
            left += 1
            continue
        kept.append(aligned)
        if beside:
            manifests.write_alignment(aligned)
    manifests.write_manifest(out, kept)
    typer.echo(f"{len(kept)} recordings aligned, {left} left out")


@app.command()
def cut(
    manifest: Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the audio and manifest.jsonl.")],
    seconds: Annotated[float, typer.Option(help="The longest piece; shorter than a row of training.")] = 10.0,
) -> None:
    """Cut long recordings at their pauses, by the words' times, so that a row of training holds them."""
    with needs_extra("train", "preparing data"):
        from slipstream.train.manifest import read_manifest, write_manifest
        from slipstream.train.prepare import cut as cut_recording

    pieces = [piece for recording in read_manifest(manifest) for piece in cut_recording(recording, out, seconds)]
    write_manifest(out / "manifest.jsonl", pieces)
    typer.echo(f"{len(pieces)} recordings, {sum(p.seconds or 0 for p in pieces) / 3600:.2f} h in {out}")


@app.command()
def synthesise(
    texts: Annotated[Path, typer.Argument(help="A sentence a line, plain or gzipped.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the audio and manifest.jsonl.")],
    engine: Engine = Engine.espeak,
    language: Annotated[str, typer.Option("--language", "-l", help="en or fr.")] = "en",
    limit: Annotated[int | None, typer.Option(help="Speak only so many sentences.")] = None,
    start: Annotated[int, typer.Option(help="Sentences to pass over first.")] = 0,
    clean: Annotated[bool, typer.Option(help="No rooms, noise or telephone lines.")] = False,
    seed: int = 0,
) -> None:
    """Make recordings: many voices, speeds, pitches and rooms.

    espeak-ng tells when each word and phone is spoken, flite and festival each word; `align` finds it for the others.
    """
    from itertools import islice

    with needs_extra("train", "preparing data"):
        from slipstream.train.augment import WaveAugment
        from slipstream.train.manifest import write_manifest
        from slipstream.train.prepare import SynthesisOptions, read_texts, synthesise_texts

    augment = None if clean else WaveAugment()
    options = SynthesisOptions(engine.value, language, augment=augment, seed=seed)
    sentences = islice(read_texts(texts), start, None if limit is None else start + limit)
    recordings = list(synthesise_texts(sentences, out, options))
    write_manifest(out / "manifest.jsonl", recordings)
    typer.echo(f"{len(recordings)} recordings, {sum(r.seconds or 0 for r in recordings) / 3600:.2f} h in {out}")


@app.command()
def sounds(
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the audio and manifest.jsonl.")],
    hours: Annotated[float, typer.Option(help="How much to make.")] = 1.0,
    languages: Annotated[str, typer.Option(help="Of the speech that they will lie between.")] = "en,fr",
    seed: int = 0,
) -> None:
    """Make sounds without words (music, drums, hum, tones, noises), so that a model learns to write nothing in them."""
    with needs_extra("train", "preparing data"):
        from slipstream.train.manifest import write_manifest
        from slipstream.train.sounds import make_sounds

    recordings = list(make_sounds(out, hours, tuple(languages.split(",")), seed))
    write_manifest(out / "manifest.jsonl", recordings)
    typer.echo(f"{len(recordings)} sounds, {sum(r.seconds or 0 for r in recordings) / 3600:.2f} h in {out}")


@app.command()
def pack(
    manifest: Manifest,
    out: Out,
    model: Annotated[str | None, typer.Option(help="Pack the tokens of this checkpoint's codec.")] = None,
    config: Annotated[Path | None, typer.Option(help="Pack log-mel frames for this TOML file's codec.")] = None,
    samples: Annotated[bool, typer.Option("--samples", help="Pack samples, for a waveform codec.")] = False,
    split: Annotated[str | None, typer.Option(help="Only recordings of this split.")] = None,
    device: str = "cpu",
) -> None:
    """Write recordings as log-mel frames, codec tokens or samples, ready to train on."""
    with needs_extra("train", "preparing data"):
        from slipstream.errors import ConfigError
        from slipstream.train.features import write_pack
        from slipstream.train.launch import load_codec, mel_config
        from slipstream.train.manifest import read_manifest
        from slipstream.train.prepare import mel_items, sample_items, token_items

    if [model is not None, config is not None, samples].count(True) != 1:
        raise ConfigError("give one of --model (tokens), --config (log-mel frames) and --samples")
    recordings = (r for r in read_manifest(manifest) if split in (None, r.split))
    if model is not None:
        count = write_pack(out, *token_items(recordings, load_codec(model), device))
    elif config is not None:
        count = write_pack(out, *mel_items(recordings, mel_config(config)))
    else:
        count = write_pack(out, *sample_items(recordings))
    typer.echo(f"{count} recordings in {out}")
