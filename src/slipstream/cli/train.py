"""`slipstream train`: tokenizers, codecs and language models from one configuration file each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from slipstream.cli.extras import needs_extra
from slipstream.cli.options import Backend, Device
from slipstream.errors import ConfigError

app = typer.Typer(help="Train tokenizers, codecs, language models and text to speech.", no_args_is_help=True)
Config = Annotated[Path, typer.Argument(help="The run's TOML file. Its keys: docs/reference/training-keys.md.")]

Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Do not train: write three rows as drawings (and audio, if the run reads samples) into `out`/check, run "
        "two steps elsewhere, and estimate time and memory.",
    ),
]
Row = Annotated[int, typer.Option(min=0, help="With --check: the first row to write, such as one that an error names.")]


@app.command()
def tokenizer(
    texts: Annotated[list[Path], typer.Argument(help="Text files with one sentence per line, plain or gzipped.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The SentencePiece model to write.")],
    size: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 2000,
    extend: Annotated[
        str | None, typer.Option(help="Keep the vocabulary of this file or model, and add to it up to --size.")
    ] = None,
    whisper: Annotated[
        Path | None,
        typer.Option(help="Choose pieces from this tokenizer.json of Whisper, for an LM that starts as its decoder."),
    ] = None,
    plain: Annotated[
        bool | None,
        typer.Option(
            "--plain/--no-plain",
            help="Write lower case without punctuation. Default: --plain; --no-plain with --whisper, or if the "
            "vocabulary of --extend has capitals.",
        ),
    ] = None,
    language: Annotated[
        str, typer.Option("--language", "-l", help="Code of the texts' language; Turkish and Azerbaijani need it.")
    ] = "",
) -> None:
    """Train a vocabulary for the text stream, or extend an existing one.

    A run whose `data.tokenizer` extends the vocabulary of the model that it starts from grows that model. `--extend`
    takes a tokenizer's file, or a model: its name or folder.
    """
    with needs_extra("train", "training"):
        from slipstream.bundle import ModelBundle
        from slipstream.data.texts import read_texts
        from slipstream.data.tokenizer import extend_tokenizer, plain_text, train_tokenizer, writes_plain
        from slipstream.data.whisper_vocabulary import read_whisper_vocabulary, whisper_tokenizer
        from slipstream.model.text import Tokenizer

    if extend is not None and not Path(extend).is_file():
        extend = str(ModelBundle.resolve(extend).sources.tokenizer)
    if extend is not None and whisper is not None:
        raise ConfigError("--extend and --whisper exclude each other: give one of them")
    if plain is None:
        plain = whisper is None and (extend is None or writes_plain(Tokenizer(extend)))
    lines = (line for path in texts for line in read_texts(path))
    sentences = (plain_text(line, language) for line in lines) if plain else lines
    if whisper is not None:
        whisper_tokenizer(read_whisper_vocabulary(whisper), sentences, out, size)
    elif extend is None:
        train_tokenizer(sentences, out, size)
    else:
        extend_tokenizer(Path(extend), sentences, out, size)
    typer.echo(f"{out}")


@app.command()
def codec(config: Config, check: Check = False, row: Row = 0) -> None:
    """Train a codec or its decoder, or resume the run in the file's `out` folder."""
    _train("codec", config, check, row)


@app.command()
def lm(config: Config, check: Check = False, row: Row = 0) -> None:
    """Train a language model, or resume the run in the file's `out` folder; then export the model."""
    _train("lm", config, check, row)


@app.command()
def tts(config: Config, check: Check = False, row: Row = 0) -> None:
    """Train a text-to-speech model, or resume the run in the file's `out` folder; then export the model."""
    _train("tts", config, check, row)


@app.command()
def calibrate(
    manifest: Annotated[Path, typer.Argument(help="A JSONL manifest of recordings that the model was not trained on.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model: a folder, or with --out any model.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write this config.json instead of the model's own.")
    ] = None,
    backend: Backend = "auto",
    device: Device = "auto",
    slots: Annotated[int, typer.Option(min=1, help="Number of recordings to transcribe concurrently.")] = 8,
    turns: Annotated[
        Path | None,
        typer.Option(
            help="Also fit when a turn ends, on the recordings of this manifest, for a model with pause heads."
        ),
    ] = None,
) -> None:
    """Calibrate the confidences of a model, and with --turns its ends of turn; write the curves to its config.json.

    Measure the result with `slipstream evaluate` on recordings of other speakers.
    """
    from slipstream.bundle import ModelBundle
    from slipstream.data.manifest import read_manifest
    from slipstream.evaluate.calibration import fit_calibration, write_calibration
    from slipstream.evaluate.confidence import judge
    from slipstream.evaluate.endings import fit_ending
    from slipstream.evaluate.report import turn_line
    from slipstream.evaluate.transcribe import transcribe_recordings
    from slipstream.loading import load

    if out is None and not Path(model).is_dir():
        remedy = f"make a copy with `slipstream convert {model} FOLDER`, or give --out FILE"
        raise ConfigError(f"--model {model}: not a folder, and the curves are written into one: {remedy}")
    bundle = ModelBundle.resolve(model).uncalibrated()
    recordings = list(read_manifest(manifest))
    with load(bundle, backend=backend, device=device, slots=slots, beam=1, mode="live") as transcriber:
        hypotheses, _ = transcribe_recordings(transcriber, recordings, min_confidence=0)
        ending = None
        if turns is not None:
            spoken, _ = transcribe_recordings(transcriber, read_manifest(turns))
            ending = fit_ending(spoken, transcriber.frame_rate, transcriber.sample_rate)
    fitted = fit_calibration(judge(hypotheses))
    for name, trials in (("words", fitted.words), ("omissions", fitted.omissions)):
        for trial in trials:
            typer.echo(f"{name:10s} {trial.method:12s} cross entropy {trial.nats:.4f} nats, ECE {trial.ece:.1%}")
    config = bundle.sources.lm[0].with_name("config.json")
    written = write_calibration(fitted.calibration, config, out, ending=ending.curve if ending else None)
    if ending is not None:
        typer.echo(turn_line(ending.score))
    typer.echo(f"{written}")


def _train(kind: Literal["codec", "lm", "tts"], config: Path, check: bool, row: int) -> None:
    """Train, or with `check` only try the run."""
    with needs_extra("train", "training"):
        from slipstream.train.launch import run_codec, run_lm, run_tts
        from slipstream.train.options import CodecRun, LMRun, TTSRun, read_run
        from slipstream.train.rehearsal import rehearse

    runs: dict[str, tuple[type[Any], Callable[..., Path]]] = {
        "codec": (CodecRun, run_codec),
        "lm": (LMRun, run_lm),
        "tts": (TTSRun, run_tts),
    }
    options_type, run = runs[kind]
    options = read_run(config, options_type)
    if check:
        typer.echo(rehearse(options, options.run.out / "check", row, lambda tried: run(tried, typer.echo)))
        return
    valid = options.data.valid if kind == "lm" else None
    measures = (_measure(valid.manifest, valid.limit),) if valid and valid.manifest else ()
    typer.echo(f"{run(options, typer.echo, *measures)}")


def _measure(manifest: Path, limit: int | None) -> Callable[[Path], float]:
    """The word error rate of a model on the first recordings of a manifest."""
    from itertools import islice

    from slipstream.data.manifest import read_manifest
    from slipstream.evaluate.scores import error_rates, need_words
    from slipstream.evaluate.transcribe import transcribe_recordings
    from slipstream.loading import load

    recordings = list(islice(read_manifest(manifest), limit))
    need_words(recordings, manifest)

    def measure(folder: Path) -> float:
        with load(str(folder), backend="torch", device="cpu", slots=8, beam=1, mode="live") as transcriber:
            hypotheses, _ = transcribe_recordings(transcriber, recordings)
        return error_rates(hypotheses).words.rate

    return measure
