"""`slipstream data`: check, transcribe, align, cut, synthesise and pack recordings for training."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import labels
from slipstream.cli.console import counted
from slipstream.cli.extras import needs_extra
from slipstream.cli.labels import Manifest, need
from slipstream.cli.left_out import LeftOut
from slipstream.errors import ConfigError, SlipstreamError

if TYPE_CHECKING:
    from slipstream.data.manifest import Recording

app = typer.Typer(help="Prepare training data.", no_args_is_help=True)
app.command()(labels.transcribe)
app.command()(labels.agree)
app.command()(labels.align)
app.command("import")(labels.import_words)
Exclude = Annotated[
    list[Path] | None,
    typer.Option(
        help="A manifest of test recordings (may be given several times): leave out its sentences, and texts that "
        "share 8 words in a row with one."
    ),
]


class OnProblem(str, Enum):
    """What to do about a bad recording."""

    skip = "skip"
    fail = "fail"


@app.command()
def validate(
    manifest: Manifest,
    tokenizer: Annotated[Path | None, typer.Option(help="Also check that each text has tokens.")] = None,
    on_problem: Annotated[OnProblem, typer.Option(help="Skip bad recordings, or stop at the first.")] = OnProblem.skip,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the good recordings to this manifest.")] = None,
) -> None:
    """Check a manifest and its audio.

    Reports invalid lines, audio that cannot be read, texts without tokens, words that differ from the text, and times
    outside the audio or not in order.
    """
    from slipstream.data import manifest as manifests
    from slipstream.model.text import Tokenizer

    spm = Tokenizer(tokenizer) if tokenizer else None
    good, report = manifests.validate(manifests.read_lines(manifest), spm, on_problem.value)
    need([*good, *report.problems], f"{manifest}: has no recordings")
    for kind, message in report.problems:
        typer.echo(f"{kind}: {message}", err=True)
    counts = ", ".join(f"{n} with bad {kind}" for kind, n in report.counts().items()) or "none bad"
    wordless = f" ({report.wordless} of them without text)" if report.wordless else ""
    typer.echo(f"{counted(report.good, 'good recording')}{wordless}, {_duration(report.seconds)}; {counts}")
    if out is not None:
        need(good, f"{manifest}: no recording is good, so {out} is not written")
        manifests.write_manifest(out, good)


@app.command()
def cut(
    manifest: Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the audio and manifest.jsonl.")],
    seconds: Annotated[float, typer.Option(min=1, help="Maximum length of a piece, less than a training row.")] = 10.0,
) -> None:
    """Cut long recordings at pauses, by their word times, so that they fit a training row."""
    with needs_extra("train", "preparing data"):
        from slipstream.data.cutting import cut as cut_recording
        from slipstream.data.manifest import each, read_manifest, write_manifest

    left_out = LeftOut()
    numbered = enumerate(read_manifest(manifest))
    cuts = each(
        numbered,
        lambda item: list(cut_recording(item[1], out, seconds, item[0])),
        lambda item, problem: left_out(item[1], problem),
    )
    pieces = [piece for parts in cuts for piece in parts]
    need(pieces, f"{manifest}: no recording can be cut")
    write_manifest(out / "manifest.jsonl", pieces)
    longer = sum((piece.seconds or 0) > seconds for piece in pieces)
    typer.echo(f"{_summary(pieces)} in {out}; {left_out.count} left out")
    if longer:
        typer.echo(f"{counted(longer, 'piece')} longer than {seconds:g} s: a single word cannot be cut")


@app.command()
def split(
    manifest: Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for train.jsonl, valid.jsonl and test.jsonl.")],
    by: Annotated[
        str,
        typer.Option(help="Key whose values are not divided: speaker, dataset, lang or your own; recording: none."),
    ] = "speaker",
    valid: Annotated[float, typer.Option(min=0, max=1, help="Share of the audio for validation.")] = 0.05,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of the audio for tests.")] = 0.05,
    no_shared_text: Annotated[
        bool, typer.Option("--no-shared-text", help="Leave out recordings whose text is in test or validation.")
    ] = False,
    exclude: Exclude = None,
    seed: Annotated[int, typer.Option(help="Seed of the order.")] = 0,
) -> None:
    """Divide recordings into training, validation and tests: no speaker is in two of them."""
    if valid + test >= 1:
        raise typer.BadParameter("its sum with --test must be below 1", param_hint="--valid")
    from slipstream.data.manifest import read_manifest, write_manifest
    from slipstream.data.splitting import split_recordings, without_shared_texts
    from slipstream.data.texts import excluded
    from slipstream.data.tokenizer import plain_text

    unwanted = excluded(*exclude or [])
    recordings = [one for one in read_manifest(manifest) if plain_text(one.text) not in unwanted]
    shares = {name: share for name, share in (("test", test), ("valid", valid)) if share}
    splits = split_recordings(recordings, shares | {"train": 1 - test - valid}, by, seed=seed)
    left_out = 0
    if no_shared_text:
        splits, left_out = without_shared_texts(splits)
    for name, chosen in splits.items():
        need(chosen, f"{manifest}: no recording is left for {name}")
        write_manifest(out / f"{name}.jsonl", chosen)
        typer.echo(f"{name}: {_summary(chosen)}")
    if left_out:
        typer.echo(f"{left_out} left out: their text is in another split")


@app.command()
def synthesise(
    texts: Annotated[Path, typer.Argument(help="A text file with one sentence per line, plain or gzipped.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the audio and manifest.jsonl.")],
    language: Annotated[
        str, typer.Option("--language", "-l", help="Language code: en, fr, de, or any other of `espeak-ng --voices`.")
    ] = "en",
    voice: Annotated[
        list[str] | None,
        typer.Option(help="A voice of the language, instead of all its accents; can be repeated. MBROLA: mb-de1, ..."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Speak the first N sentences only.")] = None,
    start: Annotated[int, typer.Option(min=0, help="Skip this number of sentences.")] = 0,
    clean: Annotated[bool, typer.Option(help="No reverberation, noise or telephone lines.")] = False,
    exclude: Exclude = None,
    seed: Annotated[int, typer.Option(help="Seed of voices and rooms.")] = 0,
) -> None:
    """Synthesise recordings with espeak-ng: many voices, speeds, pitches and rooms, with word and phone times.

    Recordings already in the folder's manifest stay, except those that are synthesised again.
    """
    with needs_extra("train", "preparing data"):
        from slipstream.data.augment import WaveAugment
        from slipstream.data.espeak import Espeak
        from slipstream.data.manifest import add_to_manifest, existing_recordings
        from slipstream.data.synthesis import SynthesisOptions, synthesise_texts
        from slipstream.data.texts import excluded, read_texts
        from slipstream.data.tokenizer import plain_text

    augment = None if clean else WaveAugment()
    options = SynthesisOptions(Espeak(language, voice or ()), language, augment=augment, seed=seed)
    everything, left_out = read_texts(texts), LeftOut()
    sentences = everything[start : None if limit is None else start + limit]
    unwanted = excluded(*exclude or [])
    sentences = [text for text in sentences if plain_text(text) not in unwanted]
    need(sentences, f"{texts}: no sentence is left of {len(everything)} after --start {start}, --limit and --exclude")
    existing_recordings(out / "manifest.jsonl")  # fail before synthesis if the manifest cannot be read

    def refuse(numbered: tuple[int, str], error: SlipstreamError) -> None:
        left_out.name(f"{texts}, sentence {numbered[0] + 1}: {error}")

    recordings = list(synthesise_texts(sentences, out, options, start, refuse))
    need(recordings, f"{texts}: espeak-ng cannot speak any of its sentences")
    add_to_manifest(out / "manifest.jsonl", recordings)
    typer.echo(f"{_summary(recordings)} in {out}; {counted(left_out.count, 'sentence')} left out")


@app.command()
def pack(
    manifest: Annotated[
        str, typer.Argument(help="A JSONL manifest, tar shards ('shards/*.tar'), or hf:NAME[:CONFIG[:SPLIT]].")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for the pack.")],
    model: Annotated[str | None, typer.Option(help="Store tokens of this model's codec, to train an LM on it.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Store log-mel frames, for the codec in this TOML file of a run.")
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="Store samples, to train a waveform codec or with a Whisper encoder.")
    ] = False,
    opus: Annotated[
        bool,
        typer.Option("--opus", help="With --samples: store Opus, a twelfth of the size."),
    ] = False,
    split: Annotated[str | None, typer.Option(help="Only recordings of this split.")] = None,
    exclude: Exclude = None,
    device: Annotated[str, typer.Option(help="With --model: device that encodes, such as cuda.")] = "cpu",
) -> None:
    """Pack recordings for training. Give one of --model, --config and --samples: it selects what is stored."""
    if [model is not None, config is not None, samples].count(True) != 1:
        choices = "--model MODEL (codec tokens), --config TOML (log-mel frames) and --samples"
        raise ConfigError(f"give exactly one of {choices}")
    if opus and not samples:
        raise ConfigError("--opus stores samples: give --samples too")
    with needs_extra("train", "preparing data"):
        from slipstream.data.manifest import matching
        from slipstream.data.pack_codec import codec_fingerprint
        from slipstream.data.packing import mel_items, sample_items, token_items
        from slipstream.data.packs import PackCodec, write_pack
        from slipstream.data.sources import stream_recordings
        from slipstream.data.texts import excluded
        from slipstream.data.tokenizer import plain_text
        from slipstream.train.launch import load_codec
        from slipstream.train.setup import mel_config

    unwanted, left_out = excluded(*exclude or []), LeftOut()
    chosen = matching(stream_recordings(manifest), manifest, split=split)
    wanted = (one for one in chosen if plain_text(one.text) not in unwanted)
    first = next(wanted, None)  # fails before a folder is made
    recordings = chain([] if first is None else [first], wanted)
    if model is not None:
        codec = load_codec(model)
        made_with = PackCodec(model, codec_fingerprint(codec), codec.config.blank_frames)
        count = write_pack(out, *token_items(recordings, codec, device, left_out), codec=made_with)
    elif config is not None:
        count = write_pack(out, *mel_items(recordings, mel_config(config), on_error=left_out))
    else:
        count = write_pack(out, *sample_items(recordings, on_error=left_out), opus=opus)
    typer.echo(f"{counted(count, 'recording')} in {out}; {left_out.count} left out")


def _summary(recordings: Sequence[Recording]) -> str:
    seconds = sum(recording.seconds or 0 for recording in recordings)
    return f"{counted(len(recordings), 'recording')}, {_duration(seconds)}"


def _duration(seconds: float) -> str:
    """Format in the largest unit that gives at least 1."""
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
