"""`slipstream listen`: transcribe the microphone live."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from threading import Event as StopEvent
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli.console import first_signal_stops, notice
from slipstream.cli.models import open_transcriber
from slipstream.cli.options import DEFAULT_MODEL, Backend, Device, Microphone, Model, Quantize, Threads
from slipstream.errors import AudioError

if TYPE_CHECKING:
    from slipstream.arrays import FloatArray
    from slipstream.events import Event


def listen(
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    backend: Backend = "auto",
    quantize: Quantize = None,
    threads: Threads = None,
    microphone: Microphone = None,
    list_microphones: Annotated[
        bool, typer.Option("--list-microphones", help="List the microphones and exit.")
    ] = False,
) -> None:
    """Transcribe the microphone until Ctrl-C, one line per turn."""
    from slipstream import audio

    if list_microphones:
        _print_microphones()
        return
    check_microphones()
    transcriber = open_transcriber(
        model, device=device, backend=backend, quantize=quantize, threads=threads, beam=1, mode="live"
    )
    with transcriber, first_signal_stops() as stop:
        notice("Listening. Press Ctrl-C to stop.")
        show_live(transcriber.stream(record(microphone, stop), audio.SAMPLE_RATE))


def check_microphones() -> None:
    """Raise `AudioError` if there is no microphone."""
    from slipstream import audio

    if not audio.input_devices():
        raise AudioError("no microphone found: connect one, or see `slipstream doctor`")


def record(microphone: str | None, stop: StopEvent) -> Iterator[FloatArray]:
    """Yield mono audio `[S]` at `audio.SAMPLE_RATE` until `stop` is set. `microphone`: a number or a part of a name."""
    from slipstream import audio

    for block_CS in audio.microphone(int(microphone) if microphone and microphone.isdecimal() else microphone):
        yield block_CS[0]
        if stop.is_set():
            return


def show_live(events: Iterable[Event]) -> None:
    """Print words as they are recognised, one line per turn; on a terminal also the word that is not complete."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from slipstream.events import OpenWord, PartialWord, Turn, Word

    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    line: list[str] = []

    def end_line() -> None:
        if line:
            console.print(" ".join(line))
            line.clear()

    with Live(console=console, auto_refresh=False, transient=True) as live:
        for event in events:
            match event:
                case PartialWord(text=text) | OpenWord(text=text):
                    live.update(Text.assemble(" ".join(line), " ", (text, "dim")), refresh=True)
                case Word(text=text):
                    line.append(text)
                    live.update(Text(" ".join(line)), refresh=True)
                case Turn():
                    live.update(Text(""))
                    end_line()
        live.update(Text(""))
        end_line()


def _print_microphones() -> None:
    from slipstream.audio import input_devices

    if not (devices := input_devices()):
        notice("No microphone found.")
    for device in devices:
        default = "  (default)" if device.is_default else ""
        sys.stdout.write(f"{device.index:3}  {device.name}, {device.sample_rate} Hz{default}\n")
