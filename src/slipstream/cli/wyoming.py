"""`slipstream wyoming`: speech-to-text, and text-to-speech, for Home Assistant."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Annotated

import typer

from slipstream.cli.console import notice
from slipstream.cli.extras import needs_extra
from slipstream.cli.listeners import AllowRemote, listen_without_keys, shown
from slipstream.cli.models import offered_languages, production_hint
from slipstream.cli.options import DEFAULT_MODEL, Backend, Device
from slipstream.cli.progress import counting_bar
from slipstream.cli.speech import DefaultVoice, Speech, SpeechSlots, Voices, open_speaker
from slipstream.errors import ConfigError


def wyoming(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Model: a name that `slipstream models` lists, a Hub repository, or a folder."
        ),
    ] = DEFAULT_MODEL,
    uri: Annotated[
        str, typer.Option("--uri", help="Address to listen on. One that other machines can reach needs --allow-remote.")
    ] = "tcp://127.0.0.1:10300",
    allow_remote: AllowRemote = False,
    zeroconf: Annotated[
        str | None,
        typer.Option("--zeroconf", metavar="NAME", help="Announce the server on the local network by this name."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            help="Language to offer; repeat it for several. Default: those of the model.",
            show_default=False,
        ),
    ] = None,
    vad: Annotated[
        bool, typer.Option("--vad/--no-vad", help="Detect the end of a command on the server, or in the client.")
    ] = True,
    device: Device = "auto",
    backend: Backend = "auto",
    slots: Annotated[int, typer.Option("--slots", min=1, help="Concurrent streams.")] = 4,
    queue_seconds: Annotated[
        float,
        typer.Option("--queue-seconds", min=0, help="Seconds a stream may wait for a slot; 0 refuses it immediately."),
    ] = 5.0,
    speech: Speech = None,
    speech_slots: SpeechSlots = 4,
    voices: Voices = "kyutai/tts-voices",
    voice: DefaultVoice = None,
) -> None:
    """Serve Home Assistant and other clients of the Wyoming protocol, without HTTP.

    `slipstream serve --wyoming HOST:PORT` serves them in addition to HTTP and WebSockets.
    """
    with needs_extra("server", "slipstream wyoming"):
        from slipstream.connections.access import Access
        from slipstream.dialects.wyoming import WyomingOptions, open_wyoming
        from slipstream.server.discovery import Announcement
        from slipstream.server.http.app import Service
        from slipstream.server.metrics import Metrics
        from slipstream.server.run import log_to_stderr
        from slipstream.server.run import serve as run
        from slipstream.server.served import ServedModel, open_models

    if not uri.startswith("tcp://"):
        raise ConfigError(f"--uri {uri}: expected tcp://HOST:PORT, such as tcp://127.0.0.1:10300")
    served = [ServedModel.parse(model, slots, backend, device)]
    options = WyomingOptions(tuple(language or offered_languages(one.model for one in served)), vad)
    log_to_stderr("info")
    if model == DEFAULT_MODEL:
        notice(production_hint())
    metrics = Metrics()
    with ExitStack() as stack:
        listener = listen_without_keys(
            stack, "--uri", uri.removeprefix("tcp://"), partial(open_wyoming, options), allow_remote
        )
        address, port = listener.socket.getsockname()[:2]
        announcement = None
        if zeroconf:
            with needs_extra("wyoming", "--zeroconf"):
                announcement = Announcement(zeroconf, address, port)
        with counting_bar("Converting") as progress:
            engines = open_models(served, stack, observer=metrics.observe_step, progress=progress)
        speaker = open_speaker(speech, device, speech_slots, voices, voice) if speech else None
        if speaker is not None:
            stack.enter_context(speaker.speaker)
        notice(f"Serving {', '.join([*engines, *([speech] if speech else [])])} on tcp://{shown(listener.socket)}")
        service = Service(engines, Access("127.0.0.1"), metrics=metrics, queue_seconds=queue_seconds, speaker=speaker)
        run(service, None, tcp=[listener], announcement=announcement)
