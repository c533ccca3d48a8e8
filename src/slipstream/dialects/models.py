"""The models of a server, and the request with which a client chooses one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from slipstream.dialects.protocol import ProtocolError
from slipstream.engine.turns import TurnOptions
from slipstream.errors import SlipstreamError


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What all streams of a model have in common.

    Args:
        model: Name of the model.
        delay_seconds: How far the text is behind the audio.
        frame_seconds: Length of a frame.
        sample_rate: Of the model's audio, in Hz.
        turns: When a turn ends, where a client sets nothing.
        delays: Whether a client may choose another delay.
    """

    model: str
    delay_seconds: float
    frame_seconds: float
    sample_rate: int = 24_000
    turns: TurnOptions = field(default_factory=TurnOptions)
    delays: bool = False


DEFAULT_VOICE = "default"
"""What clients call the voice of the server, or of a model without one."""


@dataclass(frozen=True, slots=True)
class SpeechInfo:
    """The text-to-speech model of a server, as clients see it.

    Args:
        model: Name of the model.
        sample_rate: Of its audio, in Hz.
        voices: Names of the voices that are known without a download.
        languages: Of the model.
    """

    model: str
    sample_rate: int = 24_000
    voices: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("en",)


class UnknownModel(SlipstreamError):
    """A request names a model that the server does not have."""


_Model = TypeVar("_Model")


class Models(Generic[_Model]):
    """The models of a server by their names. The first is the default.

    Args:
        models: At least one model.
        accept_any: Whether an unknown name means the default model, for clients with a fixed one such as `whisper-1`.
    """

    def __init__(self, models: Mapping[str, _Model], accept_any: bool = False) -> None:
        self._models, self.accept_any = dict(models), accept_any
        self.default = next(iter(self._models))

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def values(self) -> list[_Model]:
        """Return the models, without their names."""
        return list(self._models.values())

    def name(self, name: str | None) -> str:
        """Return the name of the model that a request selects. Raises `UnknownModel`."""
        if not name:
            return self.default
        if name in self._models:
            return name
        if self.accept_any:
            return self.default
        raise UnknownModel(f"unknown model {name!r:.80}: this server has {', '.join(self._models)}")

    def __getitem__(self, name: str | None) -> _Model:
        """Return the model that a request selects. Raises `UnknownModel`."""
        return self._models[self.name(name)]


Query: TypeAlias = Sequence[tuple[str, str]]
"""Parameters of an address, in their order; a name may occur several times."""

KEY_PARAMETER = "auth_id"
"""The parameter of every address that holds the API key: browsers cannot set a header on a WebSocket."""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """The request that opens a connection.

    Args:
        models: What each model's streams have in common.
        query: Parameters of the address.
        headers: Headers of the request, names in lower case.
        id: Identifies the request in the server's log.
        time: When it came, in seconds since 1970.
        session_seconds: How long a stream lasts at most.
        session: Identifies the stream to a client that continues it on another connection; empty if it cannot.
        speech: The model of text to speech; None on a server without one.
        configuration: Of the session before its first message, as JSON's types, from a client secret; None without one.
    """

    models: Models[StreamInfo]
    query: Query = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    time: int = 0
    session_seconds: float = 0.0
    session: str = ""
    speech: SpeechInfo | None = None
    configuration: Mapping[str, Any] | None = None

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of a query parameter. Raises `ProtocolError` if it occurs several times."""
        check_single(self.query, name)
        return dict(self.query).get(name, default)

    def all(self, name: str) -> list[str]:
        """Return all values of a query parameter."""
        return [value for key, value in self.query if key == name]

    def check_names(self, *names: str, repeatable: Sequence[str] = ()) -> None:
        """Refuse unknown parameters, for addresses that no other product's clients use.

        Args:
            names: Of the parameters with one value, without that of the key.
            repeatable: Of those that may occur several times.

        Raises:
            ProtocolError: Names a parameter that is unknown, with the known ones, or one that occurs several times.
        """
        known = (*names, *repeatable, KEY_PARAMETER)
        for name, _ in self.query:
            if name not in known:
                raise ProtocolError(f"unknown parameter {name!r:.40}: expected {', '.join(known)}")
            if name not in repeatable:
                check_single(self.query, name)


def check_single(query: Query, name: str) -> None:
    """Raise `ProtocolError` if a parameter occurs several times."""
    if (count := sum(key == name for key, _ in query)) > 1:
        raise ProtocolError(f"{name}: expected one value, got {count}")
