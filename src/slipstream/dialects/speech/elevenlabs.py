"""ElevenLabs' streaming input: text in as it is written, audio in base64 and the times of its characters out.

In: `{"text": "..."}`, also with `"flush": true`; an empty text is the end. Out: `audio`, `alignment`,
`normalizedAlignment` and `isFinal`. Their settings of voices and of chunks change nothing: a session speaks as soon as
it can. See https://elevenlabs.io/docs/api-reference/text-to-speech/v-1-text-to-speech-voice-id-stream-input.
"""

from __future__ import annotations

import base64
import re
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from slipstream.audio.encode import StreamEncoder
from slipstream.dialects.models import SpeechInfo
from slipstream.dialects.protocol import Close, CloseCode, Message, ProtocolError, Send
from slipstream.dialects.speech.protocol import (
    Begin,
    EndText,
    FlushText,
    SpeechAction,
    SpeechDialect,
    Spoken,
    Text,
)
from slipstream.dialects.texts import dump, parse_object
from slipstream.engine.reading import Audio, SpeechEvent
from slipstream.events import Word

PATH = "/v1/text-to-speech/{voice}/stream-input"
_RATES = (8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
RATES = {"pcm": _RATES, "mp3": _RATES, "opus": (8000, 16_000, 24_000, 48_000), "ulaw": (8000,), "alaw": (8000,)}
"""The sample rates of each format, in Hz."""
_FORMAT = re.compile(r"(?P<name>pcm|mp3|opus|ulaw|alaw)_(?P<rate>[0-9]{4,5})(_(?P<kilobits>[0-9]{2,3}))?")


class ElevenLabsSpeech(SpeechDialect):
    """One connection, which speaks one text. Raises `ProtocolError` for an unknown format.

    Args:
        query: `voice`, and `output_format` such as `mp3_44100_128` or `pcm_24000`.
        info: Of the model.
    """

    name = "elevenlabs-speech"

    def __init__(self, query: Mapping[str, str], info: SpeechInfo) -> None:
        self._voice = query["voice"]
        self._encoder = _encoder(query.get("output_format") or "mp3_44100_128", info.sample_rate)
        self._rate = info.sample_rate
        self._begun = False
        self._words: deque[Word] = deque()
        self._sent_until = self._until = 0.0  # seconds of audio

    def receive(self, message: Message) -> Iterator[SpeechAction]:
        if not isinstance(message, str):
            raise ProtocolError("a binary message: expected JSON in text messages")
        fields = parse_object(message, "text")
        text = fields.get("text")
        if not isinstance(text, str):
            raise ProtocolError(f"text={text!r:.40}: expected a string, which is empty at the end")
        if text == "":
            yield EndText() if self._begun else Close(CloseCode.NORMAL)
            return
        if not self._begun and text.strip():
            self._begun = True
            yield Begin(self._voice)
        if self._begun:
            yield Text(text)
            if fields.get("flush") is True:
                yield FlushText()

    def handle(self, event: SpeechEvent | Spoken) -> Iterator[SpeechAction]:
        if isinstance(event, Word):
            self._words.append(event)
        elif isinstance(event, Audio):
            self._until = event.start + len(event.samples) / self._rate
            yield from self._send(self._encoder.encode(event.samples))
        else:
            yield from self._send(self._encoder.end())
            yield Send(dump(audio=None, isFinal=True, normalizedAlignment=None, alignment=None))
            yield Close(CloseCode.NORMAL)

    def error(self, message: str, code: CloseCode) -> str:
        return dump(message=message, error=code.name.lower(), code=int(code))

    # ---------------------------------------------------------------------------------------------------- in detail

    def _send(self, data: bytes) -> Iterator[SpeechAction]:
        if data:
            alignment = self._alignment()
            audio = base64.b64encode(data).decode()
            yield Send(dump(audio=audio, isFinal=False, normalizedAlignment=alignment, alignment=alignment))
            self._sent_until = self._until

    def _alignment(self) -> dict[str, Any] | None:
        """The characters of the words that begin in the audio of this message, with times in ms from its start.

        A word whose end was known too late, such as one before a long pause, has a negative time.
        """
        chars: list[str] = []
        starts: list[int] = []
        durations: list[int] = []
        while self._words and self._words[0].start < self._until:
            word = self._words.popleft()
            text = f"{word.text} "
            step = (word.end - word.start) / len(text)
            begin = word.start - self._sent_until
            edges = [round(1000 * (begin + number * step)) for number in range(len(text) + 1)]
            chars += text
            starts += edges[:-1]
            durations += [after - before for before, after in pairwise(edges)]
        if not chars:
            return None
        # Their reference has the third name, and their server has sent the second.
        return {"chars": chars, "charStartTimesMs": starts, "charDurationsMs": durations, "charsDurationsMs": durations}


def _encoder(format: str, sample_rate: int) -> StreamEncoder:
    found = _FORMAT.fullmatch(format)
    compressed = found is not None and found["name"] in ("mp3", "opus")
    if found is None or int(found["rate"]) not in RATES[found["name"]] or (found["kilobits"] is None) == compressed:
        raise ProtocolError(
            f"output_format={format!r:.40}: expected pcm_RATE, ulaw_8000, alaw_8000, mp3_RATE_KILOBITS or "
            "opus_RATE_KILOBITS, such as pcm_24000 or mp3_44100_128"
        )
    bit_rate = 1000 * int(found["kilobits"]) if compressed else None
    return StreamEncoder({"ulaw": "mulaw"}.get(found["name"], found["name"]), sample_rate, int(found["rate"]), bit_rate)
