"""The parameters of Deepgram's addresses: each is checked, and errors name the valid values."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from slipstream.audio import Channels, Encoding, RawFormat
from slipstream.dialects import formats
from slipstream.dialects.models import StreamRequest
from slipstream.dialects.protocol import ProtocolError, make_hints
from slipstream.hints import MAX_BEAM, MAX_KEYWORD_LENGTH, MAX_WEIGHT, Keyword
from slipstream.hints import Hints as SessionHints
from slipstream.language.identify import AUTO

_RAW: dict[str, Encoding] = {"linear16": "pcm_s16le", "linear32": "pcm_f32le", "mulaw": "mulaw", "alaw": "alaw"}
FLUX_ENCODINGS = (*_RAW, "opus", "ogg-opus")
ENCODINGS = (*FLUX_ENCODINGS, "flac", "amr-nb", "amr-wb", "g729")
_G729_BYTES = 10
_ANY = "multi"
_MAX_HINTS, _MAX_HINT_CHARACTERS = 500, MAX_KEYWORD_LENGTH
_MAX_ALTERNATIVES = 100


@dataclass(frozen=True, slots=True)
class Hints:
    """What a client knows about the speech.

    Args:
        languages: Language codes, such as `en`.
        keyterms: Words and phrases that are likely to occur.
        keywords: Words, each with its boost.
        alternatives: Transcripts to return at most.
    """

    languages: tuple[str, ...] = ()
    keyterms: tuple[str, ...] = ()
    keywords: tuple[tuple[str, float], ...] = ()
    alternatives: int = 1

    def for_session(self) -> SessionHints:
        """Return them for a session. A keyword that should be less likely (a boost of 0 or less) has no effect.

        `multi` means all languages that can be identified.
        """
        boosted = [Keyword(word, min(boost, MAX_WEIGHT)) for word, boost in self.keywords if boost > 0 and word.strip()]
        terms = [term for term in self.keyterms if term.strip()]
        languages = dict.fromkeys(AUTO if code == _ANY else code for code in self.languages)
        return make_hints(
            keywords=[*terms, *boosted], languages=languages, alternatives=min(self.alternatives, MAX_BEAM)
        )


class Parameters:
    """Reads the parameters of a request. Its errors are `ProtocolError`s that name the parameter."""

    def __init__(self, request: StreamRequest) -> None:
        self._request = request

    def flag(self, name: str) -> bool:
        """Return a parameter that is `true` or `false`, and false if it is absent."""
        value = self._request.get(name)
        if value is None:
            return False
        if value.lower() not in ("true", "false"):
            raise ProtocolError(f"{name}={value!r:.40}: expected true or false")
        return value.lower() == "true"

    def whole(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number within the bounds; None if it is absent."""
        value = self._request.get(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdecimal() and len(value) <= 9 and low <= int(value) <= high):
            raise ProtocolError(f"{name}={value!r:.40}: expected a whole number from {low} to {high}")
        return int(value)

    def milliseconds(self, name: str, low: int, high: int, default: float | None) -> float | None:
        """Return a number of milliseconds in seconds; None if it is `false`."""
        value = self._request.get(name)
        if value is None or value.lower() == "true":
            return default
        if value.lower() == "false":
            return None
        if (number := self.whole(name, low, high)) is None:
            return default
        return number / 1000

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a number within the bounds; None if it is absent."""
        value = self._request.get(name)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        return check_number(name, number, low, high, value)

    def choice(self, name: str, values: Sequence[str]) -> str | None:
        """Return one of the values; None if it is absent."""
        value = self._request.get(name)
        if value is not None and value not in values:
            raise ProtocolError(f"{name}={value!r:.40}: expected one of {', '.join(values)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return all values of a parameter that may occur several times."""
        return check_texts(name, self._request.all(name))

    def hints(self) -> Hints:
        """Return the hints of the request."""
        keywords = []
        for text in self.texts("keywords"):
            word, _, boost = text.partition(":")
            try:
                keywords.append((word, check_number("keywords", float(boost or 1.0), -100.0, 100.0, text)))
            except ValueError:
                raise ProtocolError(f"keywords={text!r:.40}: expected word or word:boost") from None
        language = self._request.get("language")
        given = (*((language,) if language else ()), *self.texts("language_hint"))
        languages = (*given, *(self._detected() if not given else ()))
        alternatives = self.whole("alternatives", 1, _MAX_ALTERNATIVES) or 1
        return Hints(languages, self.texts("keyterm"), tuple(keywords), alternatives)

    def _detected(self) -> tuple[str, ...]:
        """Return the languages to detect: `detect_language` is true, or the code of each that is possible."""
        values = self.texts("detect_language")
        if any(value.lower() == "true" for value in values):
            return (_ANY,)
        return tuple(value for value in values if value.lower() != "false")

    def refuse(self, name: str, reason: str) -> None:
        """Raise the reason if the parameter is present."""
        if self._request.get(name) is not None:
            raise ProtocolError(f"{name}: {reason}")

    def raw(self) -> RawFormat | None:
        """Return the format of a file of raw samples; None for a file that has a header, whatever `encoding` is."""
        channels = self.whole("channels", 1, formats.MAX_CHANNELS) or 1
        rate = self.whole("sample_rate", formats.LOWEST_RATE, 768_000)
        encoding = self._request.get("encoding")
        return _raw_format(encoding, rate, channels) if encoding in _RAW and rate is not None else None

    def audio(self, encodings: Sequence[str], sample_rate: int) -> tuple[formats.LiveDecoder, int | None]:
        """Return the decoder of the request's audio to `sample_rate` Hz, and its channels.

        None channels are known when the stream begins: they are those of a container, each with its own transcript.
        """
        channels = self.whole("channels", 1, formats.MAX_CHANNELS) or 1
        keep: Channels = "separate" if self.flag("multichannel") else "mix"
        rate = self.whole("sample_rate", formats.LOWEST_RATE, 768_000)
        encoding = self.choice("encoding", encodings)
        count = None if keep == "separate" else 1
        if encoding is None:
            return formats.Container(sample_rate, keep), count
        if encoding in _RAW:
            format = _raw_format(encoding, rate, channels)
            return formats.PcmStream(format, sample_rate, keep), channels if keep == "separate" else 1
        if encoding == "opus":
            layout = {1: "mono", 2: "stereo"}.get(channels)
            if layout is None:
                raise ProtocolError(f"channels={channels}: Opus packets have 1 or 2")
            return formats.packets("opus", sample_rate, keep, layout), count
        if encoding == "ogg-opus":
            return formats.ogg_opus(sample_rate, keep), count
        if encoding == "g729":
            return formats.packets("g729", sample_rate, keep, size=_G729_BYTES), count
        return formats.elementary(encoding.replace("-", ""), sample_rate, keep), count


def _raw_format(encoding: str, rate: int | None, channels: int) -> RawFormat:
    if rate is None:
        raise ProtocolError(f"sample_rate is required with encoding={encoding}")
    return formats.check_format(_RAW[encoding], rate, channels)


def check_number(name: str, number: float, low: float, high: float, given: object) -> float:
    """Return the number. Raises `ProtocolError` unless it is within the bounds."""
    if not low <= number <= high:  # false for NaN
        raise ProtocolError(f"{name}={given!r:.40}: expected a number from {low:g} to {high:g}")
    return number


def check_texts(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts. Raises `ProtocolError` for too many, or one that is too long."""
    if len(texts) > _MAX_HINTS:
        raise ProtocolError(f"{name}: {len(texts)} values: at most {_MAX_HINTS} are expected")
    if any(len(text) > _MAX_HINT_CHARACTERS for text in texts):
        raise ProtocolError(f"{name}: a value has more than {_MAX_HINT_CHARACTERS} characters")
    return tuple(texts)


def request_id(id: str) -> str:
    """Return the UUID that represents a request of the server's log."""
    return str(uuid.uuid5(_NAMESPACE, id))


_NAMESPACE = uuid.UUID("6f1c1a3e-8f3b-5d0a-9c39-2a61d1f2b7c4")
