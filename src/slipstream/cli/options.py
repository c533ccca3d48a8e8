"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from slipstream.audio import RawFormat

DEFAULT_MODEL = "tiny"

SERVER_KEY = "SLIPSTREAM_API_KEY"
"""The environment variable with the API key for a server."""

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="Model: a name that `slipstream models` lists, a Hub repository, or a folder."),
]
Device = Annotated[
    str, typer.Option("--device", "-d", help="Device: auto, cpu, gpu (CUDA or Apple silicon), cuda or cuda:N.")
]
Backend = Annotated[str, typer.Option("--backend", help="Backend: auto, onnx, torch or mlx.")]
Quantize = Annotated[
    Literal["fp8", "int4", "int8", "none"] | None,
    typer.Option(
        "--quantize",
        help="Format of the language model's weights; fp8 with torch only, int4 with onnx and mlx. Default with onnx: "
        "int8 for large models.",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads, with onnx. Default: one per physical core.")
]
MinConfidence = Annotated[
    float | None,
    typer.Option(
        "--min-confidence",
        min=0,
        max=0.99,
        help="Withhold words while the mean confidence of the latest words is below this, as in noise; 0: never. "
        "Default: the value in the model's config.json.",
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Transcribe on a Slipstream server instead of locally, with its default model or the one that --model "
        f"names. Reads the API key from {SERVER_KEY}.",
    ),
]
Microphone = Annotated[
    str | None,
    typer.Option("--microphone", help="Microphone: its number or a part of its name. Default: the system's."),
]
Track = Annotated[
    int | None,
    typer.Option("--track", min=1, metavar="N", help="Audio track to transcribe, from 1. Default: the main one."),
]
_Encoding = Literal["pcm_s16le", "pcm_s24le", "pcm_f32le", "mulaw", "alaw"]
Raw = Annotated[
    _Encoding | None, typer.Option("--raw", help="Read the input as audio without a header, in this encoding.")
]
RawRate = Annotated[
    int | None, typer.Option("--raw-rate", metavar="HZ", help="Sample rate of --raw audio. Default: 24000.")
]
RawChannels = Annotated[
    int | None, typer.Option("--raw-channels", help="Interleaved channels of --raw audio. Default: 1.")
]


def check_remote(device: str, backend: str, quantize: str | None, threads: int | None) -> None:
    """Raise `BadParameter` for an option of a local model, which `--server` does not use."""
    options = {
        "--device": device != "auto",
        "--backend": backend != "auto",
        "--quantize": quantize is not None,
        "--threads": threads is not None,
    }
    for option, given in options.items():
        if given:
            raise typer.BadParameter("--server uses the model of the server", param_hint=option)


def given_model(context: typer.Context, model: str) -> str | None:
    """Return `--model` if the command line has it; None, for the default of a server, if it does not."""
    source = context.get_parameter_source("model")
    return None if source is not None and source.name == "DEFAULT" else model


def raw_format_of(raw: _Encoding | None, rate: int | None, channels: int | None, track: int | None) -> RawFormat | None:
    """Return the format that `--raw` and its options describe. Raises `BadParameter` for options that contradict."""
    for option, value in (("--raw-rate", rate), ("--raw-channels", channels)):
        if value is not None and not raw:
            raise typer.BadParameter("it applies to audio without a header only: add --raw", param_hint=option)
    if raw is None:
        return None
    if track:
        raise typer.BadParameter("audio without a header has no tracks", param_hint="--track")

    from slipstream.audio import RawFormat

    return RawFormat(raw, 24_000 if rate is None else rate, 1 if channels is None else channels)
