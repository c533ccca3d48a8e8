"""`slipstream listen`: transcribe the microphone live."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from threading import Event as StopEvent
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from slipstream.cli.console import first_signal_stops, notice
from slipstream.cli.models import production_hint
from slipstream.cli.options import DEFAULT_MODEL, Backend, Device, Model, Quantize, Threads
from slipstream.cli.progress import counting_bar
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
    microphone: Annotated[
        str | None,
        typer.Option("--microphone", help="Microphone: its number or a part of its name. Default: the system's."),
    ] = None,
    list_microphones: Annotated[
        bool, typer.Option("--list-microphones", help="List the microphones and exit.")
    ] = False,
) -> None:
    """Transcribe the microphone until Ctrl-C, one line per turn."""
    from slipstream import audio

    if list_microphones:
        _print_microphones()
        return
    microphones = audio.input_devices()
    if not microphones:
        raise AudioError("no microphone found: connect one, or see `slipstream doctor`")
    if model == DEFAULT_MODEL:
        notice(production_hint())

    import slipstream

    chosen = int(microphone) if microphone and microphone.isdecimal() else microphone
    with counting_bar("Converting") as progress:
        transcriber = slipstream.load(
            model, device=device, backend=backend, quantize=quantize, threads=threads, progress=progress
        )
    with transcriber, first_signal_stops() as stop:
        notice("Listening. Press Ctrl-C to stop.")
        show_live(transcriber.stream(_until(stop, audio.microphone(chosen)), audio.SAMPLE_RATE))


def show_live(events: Iterable[Event]) -> None:
    """Print words as they are recognised, one line per turn; on a terminal also the word that is not complete."""
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


def _until(stop: StopEvent, blocks: Iterator[FloatArray]) -> Iterator[FloatArray]:
    for block_CS in blocks:
        yield block_CS[0]
        if stop.is_set():
            return


def _print_microphones() -> None:
    from slipstream.audio import input_devices

    for device in input_devices():
        default = "  (default)" if device.is_default else ""
        sys.stdout.write(f"{device.index:3}  {device.name}, {device.sample_rate} Hz{default}\n")
