"""`slipstream say`: read a text aloud into a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli.options import Device


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
    from slipstream.speaker import load_speaker

    if text == "-":
        text = sys.stdin.read()
    if not text.strip():
        raise typer.BadParameter("there is no text", param_hint="TEXT")
    dialogue = voice is not None and len(voice) > 1
    turns = [line for line in text.splitlines() if line.strip()] if dialogue else [text]
    with load_speaker(
        model, device=device, voices=voices, guidance=guidance, codebooks=codebooks, temperature=temperature
    ) as speaker:
        chosen = None if not voice else (voice if dialogue else voice[0])
        speech = speaker.say(turns, chosen, SpeechOptions(seed=seed))
    speech.save(output)
    if words:
        for word in speech.words:
            line = {"text": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
            typer.echo(json.dumps(line, ensure_ascii=False))
