"""`slipstream say`: read a text aloud into a file."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from slipstream.audio.suffixes import audio_suffixes
from slipstream.cli.options import Device
from slipstream.cli.output import write_file


def say(
    text: Annotated[
        str, typer.Argument(help='The text; - is standard input. <break time="0.5s"/> is a pause of that length.')
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The WAV file to write.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Text-to-speech model: a Hub repository or a folder.")
    ] = "kyutai/tts-1.6b-en_fr",
    voice: Annotated[
        list[str] | None,
        typer.Option(
            "--voice", help="Voice: a name in --voices, or a file. Twice for a dialogue, with a turn per line."
        ),
    ] = None,
    voices: Annotated[
        str, typer.Option("--voices", help="Folder or Hub repository of the voices.")
    ] = "kyutai/tts-voices",
    device: Device = "auto",
    guidance: Annotated[
        float, typer.Option("--guidance", help="How strictly the model follows the voice and the text: 1 to 4.")
    ] = 2.0,
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", min=1, help="Codebooks to generate: fewer are faster. Default: all.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, help="Temperature of the sampling. Default: the model's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 0,
    words: Annotated[bool, typer.Option("--words", help="Print each word and its times as a line of JSON.")] = False,
) -> None:
    """Convert text to speech, with the time of each word."""
    from slipstream.engine.reading import SpeechOptions
    from slipstream.model.script import readable
    from slipstream.speaker import load_speaker

    _check_output(output)
    if text == "-":
        text = "" if sys.stdin is None else sys.stdin.buffer.read().decode("utf-8-sig", "surrogateescape")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter("the text is not UTF-8", param_hint="TEXT") from error
    if not readable(text).strip():
        raise typer.BadParameter("there is no text", param_hint="TEXT")
    dialogue = voice is not None and len(voice) > 1
    turns = [line for line in text.splitlines() if line.strip()] if dialogue else [text]
    with load_speaker(
        model, device=device, voices=voices, guidance=guidance, codebooks=codebooks, temperature=temperature
    ) as speaker:
        chosen = None if not voice else (voice if dialogue else voice[0])
        speech = speaker.say(turns, chosen, SpeechOptions(seed=seed, max_seconds=math.inf))
    write_file(output, speech.to_wav())
    if words:
        for word in speech.words:
            line = {"text": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
            typer.echo(json.dumps(line, ensure_ascii=False))


def _check_output(path: Path) -> None:
    """Raise an error of usage before the model is loaded, for an output that cannot be a WAV file."""
    problem = None
    if str(path) == "-":
        problem = "the audio is written to a file, not to standard output"
    elif path.is_dir():
        problem = f"{path} is a folder"
    elif path.suffix.lower() in audio_suffixes() - {".wav", ".wave"}:
        problem = f"{path} would be a WAV file: name it {path.with_suffix('.wav')}"
    if problem is not None:
        raise typer.BadParameter(problem, param_hint="--output")
