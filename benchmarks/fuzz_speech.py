"""Damaged messages of text to speech for `benchmarks.fuzz`."""

from __future__ import annotations

import json
import random

import msgpack
from benchmarks.damage import damaged

from slipstream.dialects import TCP_DIALECTS
from slipstream.dialects.models import Models, SpeechInfo, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Close, Dialect, HandOver, Message
from slipstream.dialects.speech.elevenlabs import ElevenLabsSpeech
from slipstream.dialects.speech.kyutai import KyutaiSpeech
from slipstream.dialects.speech.protocol import EndText, SpeechDialect
from slipstream.dialects.wyoming_events import WyomingEvent

SPEECH: dict[str, list[Message]] = {
    "kyutai speech": [
        "a word",
        b"\0",
        msgpack.packb({"type": "Text", "text": "a word"}),
        msgpack.packb({"type": "Eos"}),
        msgpack.packb({"type": "Voice", "embeddings": [0.5, 1, -2.0, 0.0], "shape": [1, 2, 2]}),
    ],
    "elevenlabs speech": [
        json.dumps({"text": "a word ", "flush": True, "voice_settings": {"stability": 0.5}}),
        json.dumps({"text": ""}),
    ],
    "wyoming speech": [
        bytes(WyomingEvent("describe")),
        bytes(WyomingEvent("ping", {"text": "a"})),
        bytes(WyomingEvent("synthesize", {"text": "a word", "voice": {"name": "a"}})),
        bytes(WyomingEvent("synthesize-start", {"text_format": "text"})),
        bytes(WyomingEvent("synthesize-chunk", {"text": "a"}, b"\0\0")),
        bytes(WyomingEvent("synthesize-stop")),
    ],
}


def make_speech(name: str, drawn: random.Random) -> list[Message]:
    return [damaged(drawn, drawn.choice(SPEECH[name])) for _ in range(drawn.randrange(1, 6))]


def run_speech(name: str, case: list[Message]) -> int:
    """Receive the messages; a connection of Wyoming becomes one of text to speech by its first event of that."""
    info = SpeechInfo("fuzz")
    dialect: Dialect | SpeechDialect
    if name == "wyoming speech":
        dialect = TCP_DIALECTS["wyoming"](StreamRequest(Models({"fuzz": StreamInfo("fuzz", 0.5, 0.08)}), speech=info))
    elif name == "kyutai speech":
        dialect = KyutaiSpeech({"format": "Pcm"}, info)
    else:
        dialect = ElevenLabsSpeech({"voice": "a", "output_format": "pcm_24000"}, info)
    for message in case:
        actions: list[object] = []
        for action in dialect.receive(message):
            actions.append(action)
            if isinstance(action, HandOver):
                dialect = action.dialect
                actions += dialect.open()
                break
        assert len(actions) <= len(message) + 8, f"more actions than bytes: {len(actions)}"
        if any(isinstance(action, (Close, EndText)) for action in actions):
            break
    return 0
