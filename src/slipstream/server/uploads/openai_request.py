"""The fields of OpenAI's `POST /v1/audio/transcriptions`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from slipstream.dialects.models import Models, StreamInfo, UnknownModel
from slipstream.engine.options import SessionOptions
from slipstream.errors import ConfigError
from slipstream.hints import LANGUAGE, MAX_PROMPT_LENGTH
from slipstream.hints import Hints as SessionHints
from slipstream.language.identify import AUTO
from slipstream.server.uploads.protocol import OPTIONS, UploadError

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
MAX_SPEAKERS = 4
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Hints:
    """What a client knows about the speech; `languages` appear in a verbose response.

    Args:
        languages: Languages that may be spoken, as ISO 639-1 codes; the response has those that are identified.
        prompt: Text before the speech, or in its style.
        keywords: Words and phrases that may be spoken.
    """

    languages: tuple[str, ...] = ()
    prompt: str = ""
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """The request of the fields.

    Args:
        model: Name of the model in `Models`.
        format: Of the response.
        stream: Whether the response is a stream of events.
        words: Whether a verbose response has words.
        segments: Whether a verbose response has segments.
        logprobs: Whether the response has the log-probability of each word.
        temperature: Of sampling, which the models do not do; it appears in segments.
        hints: What the client knows about the speech.
    """

    model: str
    format: ResponseFormat = "json"
    stream: bool = False
    words: bool = False
    segments: bool = True
    logprobs: bool = False
    temperature: float = 0.0
    hints: Hints = field(default_factory=Hints)

    def options(self) -> SessionOptions:
        """Return the options of its session. Raises `UploadError` for hints that are too long or too many."""
        try:
            hints = self.hints
            # A verbose response names the language, so that one is found where none is given.
            found = (AUTO,) if self.format == "verbose_json" else ()
            return replace(
                OPTIONS,
                hints=SessionHints(
                    keywords=[word for word in hints.keywords if word.strip()],
                    prompt=hints.prompt[-MAX_PROMPT_LENGTH:],
                    languages=hints.languages or found,
                ),
            )
        except ConfigError as error:
            raise UploadError(400, str(error), "keywords" if "keyword" in str(error) else "prompt") from error

    def differs(self, other: TranscriptionRequest) -> bool:
        """Return whether the response of another request differs."""
        return replace(self, hints=Hints()) != replace(other, hints=Hints())


def parse_request(fields: Sequence[tuple[str, str]], models: Models[StreamInfo]) -> TranscriptionRequest:
    """Parse the fields of a form, apart from the file. Fields of unknown names are ignored.

    Raises `UploadError`: 404 for an unknown model, 400 for other values that are invalid.
    """
    form = _Form(fields)
    format = form.format()
    stream = form.boolean("stream")
    granularities = form.choices("timestamp_granularities", ("word", "segment"))
    logprobs = bool(form.choices("include", ("logprobs",)))
    if stream and format not in ("json", "text"):
        reason = f"stream=true is not available with response_format={format}: choose json or text"
        raise UploadError(400, reason, "stream")
    if granularities and format != "verbose_json":
        needs = "timestamp_granularities[] needs response_format=verbose_json"
        raise UploadError(400, f"{needs}, not {format}", "timestamp_granularities")
    if logprobs and format != "json":
        raise UploadError(400, f"include[]=logprobs needs response_format=json, not {format}", "include")
    form.check_chunking()
    form.check_speakers()
    return TranscriptionRequest(
        model=form.model(models),
        format=format,
        stream=stream,
        words="word" in granularities,
        segments="segment" in granularities or not granularities,
        logprobs=logprobs,
        temperature=form.number("temperature", 0.0, 1.0),
        hints=form.hints(),
    )


class _Form:
    """The fields by name. A list has one field `name[]` per value; some clients write `name`."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in fields:
            self._values.setdefault(name.removesuffix("[]"), []).append(value)

    def one(self, name: str) -> str:
        """Return the only value of a field; empty without one."""
        values = self._values.get(name, [])
        if len(values) > 1:
            raise UploadError(400, f"{name} occurs {len(values)} times: expected one value", name)
        return values[0] if values else ""

    def all(self, name: str) -> tuple[str, ...]:
        return tuple(value for value in self._values.get(name, []) if value)

    def model(self, models: Models[StreamInfo]) -> str:
        try:
            return models.name(self.one("model"))
        except UnknownModel as error:
            raise UploadError(404, str(error), "model") from error

    def format(self) -> ResponseFormat:
        """Return `response_format`."""
        name, formats = "response_format", get_args(ResponseFormat)
        value = self.one(name) or "json"
        if value == "diarized_json":
            reason = f"{name}={value} is not available: no model of this server distinguishes speakers"
            raise UploadError(400, f"{reason}; choose one of {', '.join(formats)}", name)
        return cast(ResponseFormat, self._checked(name, value, formats))

    def choices(self, name: str, choices: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._checked(name, value, choices) for value in self.all(name))

    def boolean(self, name: str) -> bool:
        value = self.one(name).lower() or "false"
        if value not in _BOOLEANS:
            raise UploadError(400, f"{name}={value!r:.80}: expected true or false", name)
        return _BOOLEANS[value]

    def number(self, name: str, least: float, most: float) -> float:
        return self._number(name, self.one(name) or "0", least, most)

    def hints(self) -> Hints:
        languages = (*filter(None, [self.one("language")]), *self.all("languages"))
        for language in languages:
            if not LANGUAGE.fullmatch(language):
                reason = f"{language!r:.80} is no language: expected an ISO 639-1 code such as 'en'"
                raise UploadError(400, reason, "language" if language == self.one("language") else "languages")
        hotwords = [word.strip() for word in self.one("hotwords").split(",")]  # of faster-whisper's servers
        bias = ",".join(self.all("context_bias")).replace("_", " ").split(",")  # Mistral's, without spaces in phrases
        keywords = (*self.all("keywords"), *hotwords, *map(str.strip, bias))
        return Hints(languages, self.one("prompt"), tuple(filter(None, keywords)))

    def check_chunking(self) -> None:
        """Check `chunking_strategy`: `auto`, a JSON object, or its members as separate fields."""
        name = "chunking_strategy"
        strategy: Any = {
            key.removeprefix(f"{name}[").removesuffix("]"): self.one(key)
            for key in self._values
            if key.startswith(f"{name}[")
        }
        if (text := self.one(name)) and text != "auto":
            try:
                strategy = json.loads(text)
            except (ValueError, RecursionError):
                strategy = text
        if not strategy:
            return
        if not isinstance(strategy, dict) or strategy.get("type") != "server_vad":
            raise UploadError(400, f"{name}: expected 'auto' or an object of type 'server_vad'", name)
        self._number(f"{name}.threshold", strategy.get("threshold", 0.5), 0.0, 1.0)
        for key in ("prefix_padding_ms", "silence_duration_ms"):
            self._number(f"{name}.{key}", strategy.get(key, 0), 0.0, 3_600_000.0)

    def check_speakers(self) -> None:
        names, references = self.all("known_speaker_names"), self.all("known_speaker_references")
        for name, values in (("known_speaker_names", names), ("known_speaker_references", references)):
            if len(values) > MAX_SPEAKERS:
                raise UploadError(400, f"{name} has {len(values)} values: expected at most {MAX_SPEAKERS}", name)

    def _checked(self, name: str, value: str, choices: tuple[str, ...]) -> str:
        if value not in choices:
            raise UploadError(400, f"{name}={value!r:.80}: expected one of {', '.join(choices)}", name)
        return value

    def _number(self, name: str, value: object, least: float, most: float) -> float:
        try:
            number = float(value) if isinstance(value, (str, int, float)) else float("nan")
        except (ValueError, OverflowError):
            number = float("nan")
        if not least <= number <= most:
            raise UploadError(400, f"{name}={value!r:.80}: expected a number from {least:g} to {most:g}", name)
        return number
