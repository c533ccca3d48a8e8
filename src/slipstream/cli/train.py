"""`slipstream train`: tokenizers, codecs and language models from one configuration file each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli.extras import needs_extra

app = typer.Typer(help="Train tokenizers, codecs and language models.", no_args_is_help=True)
Config = Annotated[Path, typer.Argument(help="The run's TOML file. Its keys: docs/reference/training-keys.md.")]


@app.command()
def tokenizer(
    texts: Annotated[list[Path], typer.Argument(help="Files with a sentence a line, plain or gzipped.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The SentencePiece model to write.")],
    size: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 2000,
    extend: Annotated[Path | None, typer.Option(help="Keep this vocabulary, and add to it up to --size.")] = None,
    plain: Annotated[bool, typer.Option(help="Lower case and no punctuation.")] = True,
) -> None:
    """Train a vocabulary for the text stream, or extend a published one for a new language."""
    with needs_extra("train", "training"):
        from slipstream.data.prepare import read_texts
        from slipstream.data.tokenizer import extend_tokenizer, plain_text, train_tokenizer

    lines = (line for path in texts for line in read_texts(path))
    sentences = map(plain_text, lines) if plain else lines
    if extend is None:
        train_tokenizer(sentences, out, size)
    else:
        extend_tokenizer(extend, sentences, out, size)
    typer.echo(f"{out}")


@app.command()
def codec(config: Config) -> None:
    """Train a codec, or go on with the run that the file's `out` folder holds."""
    with needs_extra("train", "training"):
        from slipstream.train.launch import run_codec
        from slipstream.train.options import CodecRun, read_run

    typer.echo(f"{run_codec(read_run(config, CodecRun), typer.echo)}")


@app.command()
def lm(config: Config) -> None:
    """Train a language model, or go on with the run that the file's `out` folder holds; then export the model."""
    with needs_extra("train", "training"):
        from slipstream.train.launch import run_lm
        from slipstream.train.options import LMRun, read_run

    typer.echo(f"{run_lm(read_run(config, LMRun), typer.echo)}")
