"""`slipstream serve`: the server; `slipstream api-key`: create a key for it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slipstream.cli.console import notice
from slipstream.cli.extras import needs_extra
from slipstream.cli.listeners import AllowRemote, listen_without_keys, shown
from slipstream.cli.models import offered_languages, production_hint
from slipstream.cli.options import DEFAULT_MODEL, Backend, Device
from slipstream.cli.output import write_stdout
from slipstream.cli.progress import counting_bar
from slipstream.cli.speech import DefaultVoice, Speech, SpeechSlots, Voices, open_speaker
from slipstream.errors import ConfigError

if TYPE_CHECKING:
    from slipstream.connections.limits import Limits

_Level = Literal["debug", "info", "warning", "error"]


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
            help="Model: a name that `slipstream models` lists, a Hub repository, or a folder. Repeat it to serve "
            "several, which requests select by NAME; the first is the default.",
        ),
    ] = None,
    models_file: Annotated[
        Path | None,
        typer.Option(
            "--models",
            metavar="TOML",
            help="File of models: a section [NAME] each, with model, slots, backend, device, kv_cache.",
        ),
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Serve requests for an unknown model with the default one.")
    ] = False,
    device: Device = "auto",
    backend: Backend = "auto",
    kv_cache: Annotated[
        Literal["auto", "int8"],
        typer.Option(
            "--kv-cache",
            help="Format of the language model's keys and values; int8 with torch only. auto on CUDA: int8 if the "
            "slots would not fit into memory otherwise.",
        ),
    ] = "auto",
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots", min=1, help="Concurrent streams. Default: 8, or the value in --config.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. One that other machines can reach requires --api-keys.")
    ] = ("127.0.0.1"),
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port to listen on; 0 selects a free one.")
    ] = 8080,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="TOML", help="Configuration file of Kyutai's Rust server.")
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            "--api-keys", metavar="FILE", help="File of accepted keys, one line each, made by `slipstream api-key`."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option("--allow-origin", help="Origin whose pages may connect; * allows all.")
    ] = None,
    queue_seconds: Annotated[
        float,
        typer.Option("--queue-seconds", min=0, help="Seconds a stream may wait for a slot; 0 refuses it immediately."),
    ] = 0.0,
    flush_after_silence: Annotated[
        float,
        typer.Option(
            "--flush-after-silence",
            metavar="SECONDS",
            min=0,
            help="Flush the text after this much silence, for clients that send no Marker; 0 disables it.",
        ),
    ] = 0.0,
    resume_seconds: Annotated[
        float,
        typer.Option(
            "--resume-seconds",
            metavar="SECONDS",
            min=0,
            help="Keep the slot of a stream whose connection was lost for this long, so that its client can continue "
            "exactly there; 0 frees it immediately.",
        ),
    ] = 0.0,
    max_waiting: Annotated[int, typer.Option("--max-waiting", min=0, help="Streams that may wait for a slot.")] = 64,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", metavar="NAME=VALUE", help="Set a limit, such as idle_seconds=60.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", metavar="PEM", help="TLS certificate chain.")] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="PEM", help="Private key of the TLS certificate.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", min=0, max=65535, help="Second port for metrics, health and information; it needs no key."
        ),
    ] = None,
    metrics_host: Annotated[str, typer.Option("--metrics-host", help="Address of --metrics-port.")] = "127.0.0.1",
    traces: Annotated[
        bool,
        typer.Option(
            "--traces", help="Send OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra otel."
        ),
    ] = False,
    ready_when_free: Annotated[
        bool, typer.Option("--ready-when-free", help="Return 503 from /readyz while all slots are in use.")
    ] = False,
    wyoming: Annotated[
        str | None,
        typer.Option("--wyoming", metavar="HOST:PORT", help="Also serve Home Assistant here, by the Wyoming protocol."),
    ] = None,
    audiosocket: Annotated[
        str | None,
        typer.Option("--audiosocket", metavar="HOST:PORT", help="Also serve Asterisk here, by AudioSocket."),
    ] = None,
    allow_remote: AllowRemote = False,
    call_webhook: Annotated[
        list[str] | None,
        typer.Option(
            "--call-webhook", metavar="URL", help="Webhook that telephone calls may use, with all addresses below it."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            max=64,
            help="Processes for the connections, with each model in its own process; 0 runs all in one process. "
            "Default: 0 for up to 256 slots or on two cores, else one per 256 slots, at most the cores less one.",
            show_default=False,
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="DEVICE,...",
            help="Devices, such as cuda:0,cuda:1: each has every model, with all its slots, in worker processes.",
        ),
    ] = None,
    speech: Speech = None,
    speech_slots: SpeechSlots = 4,
    voices: Voices = "kyutai/tts-voices",
    voice: DefaultVoice = None,
    log_level: Annotated[
        _Level, typer.Option("--log-level", help="Log level. Logs are JSON lines and contain no audio or text.")
    ] = ("info"),
) -> None:
    """Serve live streams, uploads and a web page: the protocols of OpenAI, Deepgram, Kyutai and others, on one port.

    SIGTERM and Ctrl-C finish the open streams before the server stops. SIGHUP reloads the keys and the certificate.
    The exit code is 1 when the model fails.
    """
    with needs_extra("server", "slipstream serve"):
        from slipstream.checkpoints.rust import read_rust_config
        from slipstream.connections.access import Access, is_loopback
        from slipstream.connections.keys import KeyRing
        from slipstream.dialects import TCP_DIALECTS, OpenDialect
        from slipstream.dialects.kyutai import PATH as KYUTAI_PATH
        from slipstream.dialects.wyoming import WyomingOptions, open_wyoming
        from slipstream.server.http.app import Service
        from slipstream.server.metrics import Metrics
        from slipstream.server.run import Tls, check_certificate, listen, log_to_stderr, naming_files
        from slipstream.server.run import serve as run
        from slipstream.server.served import (
            ServedModel,
            default_workers,
            names_of,
            on_devices,
            open_model,
            open_models,
            read_models,
        )
        from slipstream.server.streams.webhooks import check_webhook
        from slipstream.workers.parent import Listeners, Parent
        from slipstream.workers.worker import Settings

    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("--tls-cert and --tls-key must be used together", param_hint="--tls-cert")
    limits = _limits(limit or [])
    webhooks = [check_webhook(url) for url in call_webhook or ()]
    rust = None if config is None else read_rust_config(config)
    named_keys = KeyRing.of(rust.keys) if rust and rust.keys else None
    keys = KeyRing.read(api_keys) if api_keys else named_keys
    access = Access(host, keys, allow_origin or ())
    log_to_stderr(log_level)
    if (models_file is not None) + (config is not None) + bool(model) > 1:
        raise typer.BadParameter("use only one of --model, --models and --config", param_hint="--model")
    if models_file is not None:
        served = read_models(models_file)
    elif rust is not None:
        served = [ServedModel(rust, "", slots, backend, device, kv_cache)]
    else:
        served = [ServedModel.parse(text, slots, backend, device, kv_cache) for text in model or [DEFAULT_MODEL]]
    if [one.model for one in served] == [DEFAULT_MODEL]:
        notice(production_hint())
    device_names = _devices(devices)
    processes = default_workers(served, device_names) if workers is None else workers
    if device_names and not processes:
        raise typer.BadParameter("needs --workers of at least 1", param_hint="--devices")
    open_speech = partial(open_speaker, speech, device, speech_slots, voices, voice) if speech else None
    if processes and sys.platform == "win32":
        raise ConfigError("--workers: Windows has no worker processes: use --workers 0")
    tls = Tls(tls_cert, tls_key) if tls_cert and tls_key else None
    if tls is not None:
        with naming_files(tls):
            check_certificate(tls)
    kyutai_path = rust.path if rust else KYUTAI_PATH
    metrics, tracer = Metrics(), None
    with ExitStack() as stack:
        if traces:
            with needs_extra("otel", "--traces"):
                from slipstream.server.tracing import Tracer
            tracer = Tracer.from_environment()
            stack.callback(tracer.close)
        listener = stack.enter_context(listen(host, port))
        operations = None
        if metrics_port is not None:
            second = stack.enter_context(listen(metrics_host, metrics_port))
            operations = second, Access(metrics_host) if is_loopback(metrics_host) else None
        wyoming_options = WyomingOptions(offered_languages(one.model for one in served))
        tcp_dialects: dict[str, OpenDialect] = {**TCP_DIALECTS, "wyoming": partial(open_wyoming, wyoming_options)}
        tcp = {
            name: listen_without_keys(stack, f"--{name}", address, tcp_dialects[name], allow_remote)
            for name, address in (("wyoming", wyoming), ("audiosocket", audiosocket))
            if address is not None
        }

        def show(names: Iterable[str]) -> None:
            notice(f"Serving {', '.join(names)} on {'https' if tls else 'http'}://{address}")
            if operations is not None:
                notice(f"Metrics are on http://{operations_address}/metrics")
            for name, tcp_address in tcp_addresses.items():
                notice(f"Serving {name} on tcp://{tcp_address}")

        address = shown(listener)
        operations_address = shown(operations[0]) if operations else ""
        tcp_addresses = {name: shown(one.socket) for name, one in tcp.items()}
        if processes:
            settings = Settings(
                host=host,
                keys=keys,
                origins=tuple(allow_origin or ()),
                limits=limits,
                tls=tls,
                queue_seconds=queue_seconds,
                flush_after_silence=flush_after_silence,
                resume_seconds=resume_seconds,
                kyutai_path=kyutai_path,
                ready_when_free=ready_when_free,
                webhooks=tuple(webhooks),
                accept_any=any_model,
                operations_host=metrics_host if is_loopback(metrics_host) else None,
                traces=traces,
                log_level=log_level,
            )
            names = names_of(served)
            opened = [
                partial(open_model, one, name)
                for model, name in zip(served, names, strict=True)
                for one in on_devices(model, device_names)
            ]
            listeners = Listeners(listener, operations[0] if operations else None, list(tcp.values()))
            import asyncio

            asyncio.run(Parent(opened, processes, settings, listeners, max_waiting, show, open_speech).run())
            return
        with counting_bar("Converting") as progress:
            engines = open_models(
                served,
                stack,
                accept_any=any_model,
                max_waiting=max_waiting,
                observer=metrics.observe_step,
                progress=progress,
            )
        speaker = open_speech() if open_speech else None
        if speaker is not None:
            stack.enter_context(speaker.speaker)
        show(engines)
        run(
            Service(
                engines=engines,
                access=access,
                limits=limits,
                metrics=metrics,
                queue_seconds=queue_seconds,
                flush_after_silence=flush_after_silence,
                resume_seconds=resume_seconds,
                kyutai_path=kyutai_path,
                ready_when_free=ready_when_free,
                metrics_elsewhere=operations is not None,
                webhooks=webhooks,
                tracer=tracer,
                speaker=speaker,
            ),
            listener,
            tls,
            operations,
            list(tcp.values()),
        )


def _devices(text: str | None) -> list[str]:
    """Return the names in `--devices`."""
    names = [name.strip() for name in (text or "").split(",")]
    if text is not None and not all(names):
        raise typer.BadParameter(f"{text!r}: expected names with commas between them", param_hint="--devices")
    return [name for name in names if name]


def api_key(
    name: Annotated[str, typer.Argument(help="Name of the key's owner, one word. It appears in the server's log.")],
    streams: Annotated[
        int | None, typer.Option("--streams", min=1, help="Maximum of open streams and uploads.")
    ] = None,
    per_minute: Annotated[
        int | None, typer.Option("--per-minute", min=1, help="Maximum of streams and uploads started per minute.")
    ] = None,
) -> None:
    """Create a key for `slipstream serve --api-keys`. Shows the key once, and prints its line for the key file."""
    from slipstream.connections.keys import new_key

    key, line = new_key(name, streams, per_minute)
    write_stdout(f"{line}\n")  # first: a key without its line is of no use
    notice(f"Key (shown only once): {key}")


def _limits(settings: list[str]) -> Limits:
    """Return `Limits` with the values of `name=value` settings. Raises `ConfigError` for an invalid setting."""
    from slipstream.connections.limits import Limits
    from slipstream.schema import check_keys

    limits = Limits()
    known = {field.name: type(getattr(limits, field.name)) for field in fields(limits)}
    for setting in settings:
        name, _, text = setting.partition("=")
        check_keys({name: text}, known, "--limit")
        try:
            value = known[name](text)
        except ValueError as error:
            what = "a whole number" if known[name] is int else "a number"
            raise ConfigError(f"--limit {setting}: expected {what} after {name}=") from error
        if not value > 0:
            raise ConfigError(f"--limit {setting}: must be more than 0")
        limits = replace(limits, **{name: value})
    return limits
