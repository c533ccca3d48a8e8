"""Text to speech on a server: options, and the model that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli.models import offered_languages

if TYPE_CHECKING:
    from slipstream.server.speaking import ServedSpeaker

Speech = Annotated[
    str | None,
    typer.Option("--speech", metavar="MODEL", help="Also offer text to speech, with this repository or folder."),
]
SpeechSlots = Annotated[int, typer.Option("--speech-slots", min=1, help="Texts to speak at the same time.")]
Voices = Annotated[str, typer.Option("--voices", help="Folder or Hub repository of voices that clients may select.")]
DefaultVoice = Annotated[
    str | None, typer.Option("--voice", help="Voice for clients that select none, or an unknown one.")
]


def open_speaker(model: str, device: str, slots: int, voices: str, voice: str | None) -> ServedSpeaker:
    """Load the text-to-speech model of a server.

    Raises `CheckpointError` for a default voice that does not exist.
    """
    from slipstream.server.speaking import ServedSpeaker
    from slipstream.speaker import load_speaker

    loaded = load_speaker(model, device=device, slots=slots, voices=voices)
    try:
        speaker = ServedSpeaker(loaded, voice, offered_languages([model]))
        speaker.voice(None)  # report a missing default voice now
    except BaseException:
        loaded.close()
        raise
    return speaker
