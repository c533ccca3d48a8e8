"""The configuration of a Realtime transcription session: its JSON in the GA and beta formats, and what it means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from slipstream.audio import Encoding, RawFormat
from slipstream.dialects.models import Models, StreamInfo, UnknownModel
from slipstream.dialects.realtime.messages import InvalidMessage
from slipstream.engine.turns import TurnOptions
from slipstream.errors import ConfigError
from slipstream.hints import MAX_PROMPT_LENGTH, Hints
from slipstream.schema import Natural, Section, check_keys, describe

LOGPROBS = "item.input_audio_transcription.logprobs"
LOUDEST_DB = 24.0
"""How much louder than the background voice must be at a threshold of 1; 0.5 is the default of both scales."""

DELAYS = {"minimal": 0.5, "low": 1.0, "medium": 1.5, "high": 2.5, "xhigh": 4.0}
"""Seconds of text delay, for a model that is trained with several."""

Json = dict[str, Any]

_RATES = {"audio/pcm": 24_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}
_ENCODINGS: dict[str, Encoding] = {"audio/pcm": "pcm_s16le", "audio/pcmu": "mulaw", "audio/pcma": "alaw"}


# ------------------------------------------------------------------------------------------------------ the GA format


class _Format(Section):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = None

    @model_validator(mode="after")
    def _check_rate(self) -> _Format:
        expected = _RATES[self.type]
        if self.rate not in (None, expected):
            raise ValueError(f"rate={self.rate}: {self.type} has {expected} Hz")
        return self


class _NoiseReduction(Section):
    """Has no effect: the models are trained on noisy audio."""

    type: Literal["near_field", "far_field"] | None = None
    strength: float | None = None


class _Transcription(Section):
    """The model and what is known about the speech. `delay` has an effect if the model has several delays."""

    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    prompt: str | None = None
    keywords: list[str] | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class _TurnDetection(Section):
    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Natural = 300
    silence_duration_ms: Annotated[int, Field(ge=80, le=60_000)] = 500
    idle_timeout_ms: Annotated[int, Field(ge=5000, le=30_000)] | None = None
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool | None = None
    interrupt_response: bool | None = None


class _Input(Section):
    format: _Format = _Format()
    noise_reduction: _NoiseReduction | None = None
    transcription: _Transcription = _Transcription()
    turn_detection: _TurnDetection | None = None


class _Audio(Section):
    input: _Input = _Input(turn_detection=_TurnDetection())


class _Session(Section):
    ignored: ClassVar[frozenset[str]] = frozenset({"id", "object", "expires_at"})
    type: Literal["transcription"] = "transcription"
    audio: _Audio = _Audio()
    include: list[Literal["item.input_audio_transcription.logprobs"]] = Field(default_factory=list)


# ----------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True, slots=True)
class Settings:
    """What a configuration means.

    Args:
        format: Of the audio.
        turns: When a turn ends; None where the client commits.
        prefix_seconds: How much audio before a turn's speech belongs to it.
        idle_seconds: Silence after which an empty item is committed; None for never.
        logprobs: Whether text comes with log-probabilities.
        hints: What the client knows about the speech.
    """

    format: RawFormat
    turns: TurnOptions | None
    prefix_seconds: float
    idle_seconds: float | None
    logprobs: bool
    hints: Hints


class Configuration:
    """The configuration of one session, which updates change. `json` is in the GA format."""

    def __init__(self, model: str | None = None) -> None:
        self._parsed = _Session()
        self.json = self._parsed.model_dump(mode="json")
        self.json["audio"]["input"]["transcription"]["model"] = model
        self._parsed = _Session.model_validate_json(json.dumps(self.json))

    def updated(self, patch: Mapping[str, Any], *, beta: bool = False) -> Configuration:
        """Return the configuration with `patch`, in the GA or the beta format: absent fields keep their value.

        Raises `InvalidMessage` for unknown fields and invalid values.
        """
        changed = Configuration()
        try:
            raw = _merge(self.json, _from_beta(patch) if beta else patch)
            changed._parsed = _Session.model_validate_json(json.dumps(raw))
        except ConfigError as error:
            raise InvalidMessage(str(error), "unknown_parameter", "session") from error
        except RecursionError as error:
            raise InvalidMessage("session: nested too deeply", "invalid_value", "session") from error
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            param = ".".join(map(str, ("session", *problem["loc"])))
            code = "unknown_parameter" if problem["type"] == "extra_forbidden" else "invalid_value"
            message = describe(error, _Session, "session", "session.")
            if beta:
                for new, old in _BETA_PATHS:
                    message, param = message.replace(new, old), param.replace(new, old)
            raise InvalidMessage(message, code, param) from error
        changed.json = changed._parsed.model_dump(mode="json")
        return changed

    def find(self, models: Models[StreamInfo]) -> StreamInfo:
        """Return the model that it names. Raises `InvalidMessage` for an unknown one."""
        try:
            return models[self._parsed.audio.input.transcription.model]
        except UnknownModel as error:
            raise InvalidMessage(str(error), "model_not_found", "session.audio.input.transcription.model") from error

    def settings(self, info: StreamInfo) -> Settings:
        """Return what it means for a model. Raises `InvalidMessage` for hints over their limits."""
        audio = self._parsed.audio.input
        detection = audio.turn_detection
        return Settings(
            RawFormat(_ENCODINGS[audio.format.type], _RATES[audio.format.type]),
            None if detection is None else _turns(detection, info.turns),
            detection.prefix_padding_ms / 1000 if detection is not None and detection.type == "server_vad" else 0.0,
            detection.idle_timeout_ms / 1000 if detection is not None and detection.idle_timeout_ms else None,
            LOGPROBS in self._parsed.include,
            _hints(audio.transcription, info.delays),
        )

    def shown(self, id: str, info: StreamInfo, *, beta: bool = False) -> Json:
        """Return it as the server reports it: of the request with this ID, which this model serves."""
        audio = self.json["audio"]["input"]
        detection: Json | None = audio["turn_detection"]
        if detection is not None:
            detection = {name: detection[name] for name in _SHOWN[detection["type"]]}
        transcription = {**audio["transcription"], "model": info.model}
        if not info.delays:
            transcription["delay"] = None
        kind = audio["format"]["type"]
        head = {"id": f"sess_{id}", "object": "realtime.transcription_session"}
        if beta:
            return {
                **head,
                "input_audio_format": _BETA_FORMATS[kind],
                "input_audio_transcription": transcription,
                "turn_detection": detection,
                "input_audio_noise_reduction": audio["noise_reduction"],
                "include": self.json["include"],
            }
        shown = {
            "format": {"type": kind, "rate": 24_000} if kind == "audio/pcm" else {"type": kind},
            "noise_reduction": audio["noise_reduction"],
            "transcription": transcription,
            "turn_detection": detection,
        }
        return {**head, "type": "transcription", "audio": {"input": shown}, "include": self.json["include"]}


def configure(
    session: Mapping[str, Any], models: Models[StreamInfo], model: str | None = None
) -> tuple[Configuration, StreamInfo]:
    """Return the configuration with which a session begins, and the model that serves it.

    Args:
        session: What differs from the defaults, in the GA format.
        models: Of the server.
        model: Overrides the model of `session`.

    Raises:
        InvalidMessage: `session` has unknown fields, invalid values, or an unknown model.
        UnknownModel: `model` is unknown.
    """
    configuration = Configuration(models[model].model).updated(session)
    if model:
        configuration = configuration.updated({"audio": {"input": {"transcription": {"model": model}}}})
    info = configuration.find(models)
    configuration.settings(info)  # raises for hints over their limits
    return configuration, info


def _hints(transcription: _Transcription, delays: bool) -> Hints:
    languages = [transcription.language or "", *(transcription.languages or ())]
    try:
        return Hints(
            keywords=[word for word in transcription.keywords or () if word.strip()],
            prompt=(transcription.prompt or "")[-MAX_PROMPT_LENGTH:],
            languages=list(filter(None, languages)),
            delay=DELAYS.get(transcription.delay or "") if delays else None,
        )
    except ConfigError as error:
        param = "session.audio.input.transcription"
        raise InvalidMessage(f"{param}: {error}", "invalid_value", param) from error


def _turns(detection: _TurnDetection, usual: TurnOptions) -> TurnOptions:
    if detection.type == "server_vad":
        return replace(
            usual,
            head=None,
            quiet_seconds=detection.silence_duration_ms / 1000,
            voice_db=LOUDEST_DB * detection.threshold,
        )
    # A model's own threshold is the middle. The quiet times are for models without pause heads.
    above, quiet, wait = {
        "low": ((1 + usual.end_above) / 2, 1.5, 8.0),
        "high": (0.75 * usual.end_above, 0.625, 2.0),
    }.get(detection.eagerness, (usual.end_above, 1.0, 4.0))
    return replace(
        usual,
        end_above=above,
        resume_below=min(usual.resume_below, 2 / 3 * above),
        quiet_seconds=quiet * usual.quiet_seconds,
        wait_seconds=wait,
    )


def _merge(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    if new.get("type", old.get("type")) != old.get("type"):
        return new  # another kind, such as semantic_vad after server_vad: nothing of the old one holds
    return {**old, **{name: _merge(old.get(name), value) for name, value in new.items()}}


_SHOWN = {
    "server_vad": ("type", "threshold", "prefix_padding_ms", "silence_duration_ms", "idle_timeout_ms"),
    "semantic_vad": ("type", "eagerness"),
}


# ---------------------------------------------------------------------------------------------------- the beta format


def _from_beta(session: Mapping[str, Any]) -> Json:
    check_keys(session, {*_BETA_FIELDS, "input_audio_format", "include", "modalities", "client_secret"}, "session")
    audio: Json = {field: session[name] for name, field in _BETA_FIELDS.items() if name in session}
    if "input_audio_format" in session:
        name = session["input_audio_format"]
        kind = next((kind for kind, known in _BETA_FORMATS.items() if known == name), None)
        if kind is None:
            raise InvalidMessage(
                f"session.input_audio_format={name!r:.40} is not supported: "
                f"expected {', '.join(map(repr, _BETA_FORMATS.values()))}",
                "invalid_value",
                "session.input_audio_format",
            )
        audio["format"] = {"type": kind}
    patch: Json = {"audio": {"input": audio}}
    return {**patch, "include": session["include"]} if "include" in session else patch


_BETA_FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}
_BETA_FIELDS = {
    "input_audio_transcription": "transcription",
    "turn_detection": "turn_detection",
    "input_audio_noise_reduction": "noise_reduction",
}
_BETA_PATHS = [(f"session.audio.input.{field}", f"session.{name}") for name, field in _BETA_FIELDS.items()]
