"""The protocol of vosk-server: https://github.com/alphacep/vosk-server.

In: `{"config": {"sample_rate": 8000}}`, 16-bit PCM in binary messages, `{"eof": 1}`, `{"reset": 1}`. Each message of
audio has one answer: `{"partial": "..."}`, or `{"result": [...], "text": "..."}` once a turn has ended. `eof` and
`reset` are answered with the result of the remaining words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from slipstream.dialects.formats import PcmStream, check_format
from slipstream.dialects.models import StreamRequest, UnknownModel
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import (
    Action,
    CloseCode,
    Dialect,
    Finish,
    Flush,
    Marker,
    Message,
    Open,
    ProtocolError,
    Send,
    make_hints,
)
from slipstream.dialects.texts import dump, parse_object
from slipstream.engine.options import SessionOptions
from slipstream.events import Event, Final, MarkerReached, OpenWord, PartialWord, Turn, Word
from slipstream.hints import MAX_BEAM, Hints
from slipstream.transcript import likely_texts

PATH = "/vosk"
_MOST_ALTERNATIVES = 100
DEFAULT_RATE = 8_000
"""Sample rate of audio without a `config`, as in vosk-server, in Hz."""
ORDER: Table = {
    "new": {"config": "new", "audio": "open", "reset": "new", "eof": "ended"},
    "open": {"audio": "open", "reset": "open", "eof": "ended"},
    "ended": {},
}


def open_dialect(request: StreamRequest) -> VoskDialect:
    """Open the dialect for one connection. The address may have a `model`. Raises `UnknownModel`."""
    return VoskDialect(request)


class VoskDialect(Dialect):
    """One connection of a client of vosk-server."""

    name = "vosk"

    def __init__(self, request: StreamRequest) -> None:
        self._models = request.models
        self._model = request.models[request.get("model")]
        self._order = Order(ORDER)
        self._rate = DEFAULT_RATE
        self._with_words, self._alternatives = True, 0
        self._hints = Hints()
        self._pcm: PcmStream | None = None
        self._results: list[list[Word]] = []
        self._words: list[Word] = []
        self._partial = ""

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for a message: see `Dialect.receive`."""
        if isinstance(message, bytes):
            yield from self._audio(message)
            return
        fields = parse_object(message)
        kind = next((name for name in ("config", "eof", "reset") if name in fields), None)
        if kind is None:
            raise ProtocolError(f"unknown message {message!r:.40}: expected config, eof or reset")
        self._order.follow(kind)
        if kind == "config":
            self._configure(fields["config"])
            return
        if self._pcm is None:
            yield Send(self._result([]))
        else:
            yield from self._pcm.rest(last=kind == "eof")
            if kind == "reset":
                yield Marker(0)
                yield Flush()  # the marker would wait for more audio
        if kind == "eof":
            yield Finish()

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Keep the text for the next answer: see `Dialect.handle`."""
        if isinstance(event, (PartialWord, OpenWord)):
            self._partial = event.text
        elif isinstance(event, Word):
            self._words.append(event)
            self._partial = ""
        elif isinstance(event, Turn):
            self._results.append(self._words)
            self._words = []
        elif isinstance(event, (MarkerReached, Final)):
            words = [word for result in self._results for word in result] + self._words
            self._results, self._words = [], []
            yield Send(self._result(words))

    def error(self, message: str, code: CloseCode) -> str:
        return dump(error=message)

    # ------------------------------------------------------------------------------------------------------ in detail

    def _audio(self, data: bytes) -> Iterator[Action]:
        self._order.follow("audio")
        if self._pcm is None:
            self._pcm = PcmStream(check_format("pcm_s16le", self._rate), self._model.sample_rate)
            yield Open(SessionOptions(low_latency=True, hints=self._hints), self._model.model)
        yield from self._pcm.audio(data)
        yield Send(self._answer())

    def _answer(self) -> str:
        if self._results:
            return self._result(self._results.pop(0))
        partial = [*(word.text for word in self._words), *filter(None, [self._partial])]
        return dump(partial=" ".join(partial))

    def _result(self, words: Sequence[Word]) -> str:
        if not self._alternatives:
            return dump(**self._written(words))
        alternatives = []
        for text in likely_texts(words, self._alternatives):
            confidence = sum(word.confidence for word in text) / max(1, len(text))
            alternatives.append({"confidence": round(confidence, 6), **self._written(text)})
        return dump(alternatives=alternatives)

    def _written(self, words: Sequence[Word]) -> dict[str, Any]:
        listed = {"result": [_timed(word) for word in words]} if self._with_words and words else {}
        return {**listed, "text": " ".join(word.text for word in words)}

    def _configure(self, config: Any) -> None:
        if not isinstance(config, dict):
            raise ProtocolError(f"config: expected an object, got {type(config).__name__}")
        rate = config.get("sample_rate", self._rate)
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1e6 or rate != int(rate):
            raise ProtocolError(f"sample_rate={rate!r:.40}: expected a whole number")
        self._rate = check_format("pcm_s16le", int(rate)).sample_rate
        if (model := config.get("model")) is not None:
            try:
                self._model = self._models[str(model)]
            except UnknownModel as error:
                raise ProtocolError(str(error)) from error
        if (phrases := config.get("phrase_list")) is not None:
            if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
                raise ProtocolError("phrase_list: expected a list of strings")
            keywords = [phrase for phrase in phrases if phrase.strip() not in ("", "[unk]")]
            self._hints = make_hints(keywords=keywords, alternatives=self._hints.alternatives)
        self._with_words = bool(config.get("words", self._with_words))
        self._alternatives = _most(config.get("max_alternatives", self._alternatives))
        self._hints = replace(self._hints, alternatives=min(max(1, self._alternatives), MAX_BEAM))


def _most(given: Any) -> int:
    if not isinstance(given, (bool, int)) or not 0 <= given <= _MOST_ALTERNATIVES:
        raise ProtocolError(f"max_alternatives={given!r:.40}: expected a whole number from 0 to {_MOST_ALTERNATIVES}")
    return int(given)


def _timed(word: Word) -> dict[str, Any]:
    numbers = {"conf": word.confidence, "end": word.end, "start": word.start}
    return {**{name: round(value, 6) for name, value in numbers.items()}, "word": word.text}
