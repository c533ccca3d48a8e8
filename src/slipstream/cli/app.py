"""All commands. Each imports its packages when it runs, so that `slipstream --help` is fast."""

from __future__ import annotations

import errno
import logging
import signal
import sys
from typing import Annotated

import typer

from slipstream import __version__
from slipstream.cli import captions, convert, data, doctor, evaluate, listen, models, say, serve, train, wyoming
from slipstream.cli.console import INTERRUPTED, WarningHandler, fail
from slipstream.cli.output import close_stdout
from slipstream.cli.streams import guard_streams
from slipstream.cli.transcribe import command as transcribe
from slipstream.errors import SlipstreamError

app = typer.Typer(
    help="Slipstream: streaming speech-to-text with the time of each word.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_warnings = WarningHandler(logging.WARNING)
for _command in (
    transcribe.transcribe,
    listen.listen,
    captions.captions,
    say.say,
    serve.serve,
    serve.api_key,
    wyoming.wyoming,
    models.models,
    doctor.doctor,
    convert.convert,
    evaluate.evaluate,
):
    app.command()(_command)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")


def run() -> None:
    """Run the command and exit. An error prints one message, not a traceback."""
    guard_streams()
    logging.getLogger("slipstream").addHandler(_warnings)
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a failure is an error message
    except SlipstreamError as error:
        fail(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        close_stdout()
        sys.exit(1)
    except OSError as error:
        close_stdout()
        fail(_describe(error))
        sys.exit(1)
    except Exception:
        if interrupted:  # an extension module whose import Ctrl-C interrupts raises ImportError
            sys.exit(INTERRUPTED)
        raise


def _describe(error: OSError) -> str:
    """Describe which file an error of the system is about. An error of a write does not name its file."""
    if error.filename:
        return f"{error.filename}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EIO):
        return f"the output cannot be written: {error.strerror}"
    return str(error)


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
