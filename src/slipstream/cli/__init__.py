"""The command line. Each command imports what it needs when it runs, so that `slipstream --help` answers at once."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from slipstream import __version__
from slipstream.cli import convert, data, doctor, evaluate, listen, models, serve, train, transcribe
from slipstream.cli.console import INTERRUPTED, WarningHandler, fail
from slipstream.cli.output import close_stdout
from slipstream.errors import SlipstreamError

app = typer.Typer(
    help="Slipstream: streaming speech-to-text. Live speech in, timed words out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_warnings = WarningHandler(logging.WARNING)
for _command in (
    transcribe.transcribe,
    listen.listen,
    serve.serve,
    serve.api_key,
    models.models,
    doctor.doctor,
    convert.convert,
    evaluate.evaluate,
):
    app.command()(_command)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    logging.getLogger("slipstream").addHandler(_warnings)
    try:
        app()
    except SlipstreamError as error:
        fail(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        close_stdout()
        sys.exit(1)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"slipstream {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
