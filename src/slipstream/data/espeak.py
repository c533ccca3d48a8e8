"""espeak-ng through its C library: speech with the times of words and phones, and the phones of a text.

espeak-ng has one global voice: use one process per stream of synthesis, not threads.
"""

from __future__ import annotations

import ctypes
import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.data.alignment import spread
from slipstream.data.synthesis import Phone, Utterance, Voice, from_int16, load_library
from slipstream.errors import BackendError, SlipstreamError

ESPEAK_ACCENTS: dict[str, tuple[str, ...]] = {
    "en": (
        "en-us",
        "en",
        "en-gb-scotland",
        "en-gb-x-rp",
        "en-gb-x-gbclan",
        "en-gb-x-gbcwmd",
        "en-029",
        "en-us-nyc",
    ),
    "fr": ("fr", "fr-be", "fr-ch"),
}
"""Accents by language, the standard one first. A language that is not listed uses the voice of the same name."""

# Without whispers, robots and other effects.
ESPEAK_VARIANTS: tuple[str, ...] = (
    *(f"m{i}" for i in range(1, 9)),
    *(f"f{i}" for i in range(1, 6)),
    *("klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "Alex", "Alicia", "Andrea", "Andy", "Annie"),
    *(
        "Denis",
        "Diogo",
        "Gene",
        "Gene2",
        "Henrique",
        "Hugo",
        "Jacky",
        "Lee",
        "Marco",
        "Mario",
        "Michael",
        "Mike",
    ),
    *("Nguyen", "adam", "anika", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed"),
    *("edward", "edward2", "grandma", "grandpa", "gustave", "iven", "iven2", "iven3", "iven4", "john"),
    *(
        "kaukovalta",
        "linda",
        "marcelo",
        "max",
        "michel",
        "miguel",
        "norbert",
        "pablo",
        "paul",
        "pedro",
        "quincy",
    ),
    *("rob", "robert", "sandro", "shelby", "steph", "steph2", "steph3", "travis", "victor", "zac"),
)
"""Voice variants that sound like people."""


class Espeak:
    """espeak-ng as a `Synthesiser`: it reports the times of words and phones.

    Args:
        language: The code of a language.
        accents: Names of voices of that language, MBROLA's among them; by default those of `accents_of`.

    Example:
        >>> Espeak("de").voices
        {'de': ('de',)}
    """

    name = "espeak-ng"

    def __init__(self, language: str, accents: Sequence[str] = ()) -> None:
        self.voices = {language: tuple(accents) or accents_of(language)}

    def draw(self, language: str, rate: float, rng: np.random.Generator, choices: random.Random) -> Voice:
        """Draw an accent with a variant. One voice in eight has none, since half of the variants sound alike."""
        accent = choices.choice(self.voices[language])
        plain = choices.random() < 1 / 8 or accent.startswith("mb")  # a recorded voice has no variants
        name = accent if plain else f"{accent}+{choices.choice(ESPEAK_VARIANTS)}"
        return Voice(name, rate, float(rng.uniform(0.1, 0.95)), float(rng.uniform(0.2, 0.8)))

    def speak(self, text: str, voice: Voice) -> Utterance:
        """Speak `text`. Raises `BackendError` where espeak-ng or the voice is missing, as for every other text."""
        try:
            return _speak(text, voice)[0]
        except _NoVoiceError as error:
            raise BackendError(str(error)) from error


def accents_of(language: str) -> tuple[str, ...]:
    """Return espeak-ng's voices for a language: its accents where they are known, or the voice of that name."""
    return ESPEAK_ACCENTS.get(language, (language.lower(),))


def phones_of(text: str, language: str) -> list[tuple[str, ...]]:
    """Return espeak-ng's phones for each word of `text` (split at spaces) in `language`.

    A word that espeak-ng joins to its neighbour has no phones. Raises `SlipstreamError` for a language that espeak-ng
    does not have.
    """
    utterance, owners = _speak(text, Voice(accents_of(language)[0], rate=2.0))
    words: list[list[str]] = [[] for _ in text.split()]
    for phone, owner in zip(utterance.phones, owners, strict=True):
        if owner is not None and not phone.name.startswith("_"):
            words[owner].append(phone.name)
    return [tuple(word) for word in words]


_WORD_EVENT, _PHONEME_EVENT = 1, 7
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _DONT_EXIT = 1, 0x8000
_RATE, _PITCH, _RANGE = 1, 3, 4
_BY_CHARACTER, _UTF8 = 1, 1
_ESPEAK_WORDS_PER_MINUTE = 175


class _NoVoiceError(SlipstreamError):
    """espeak-ng has no voice of a name."""


class _EspeakId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _EspeakEvent(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EspeakId),
    )


_EspeakCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_EspeakEvent)
)


class _Library:
    """The C library, which returns audio and events through a callback."""

    def __init__(self) -> None:
        self._library = load_library("espeak-ng")
        self._chunks: list[Any] = []
        self._events: list[tuple[int, int, int, str]] = []
        self._callback = _EspeakCallback(self._receive)  # C keeps only its address
        self.sample_rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 1000, None, _PHONEME_EVENTS | _DONT_EXIT)
        if self.sample_rate <= 0:
            raise BackendError("espeak-ng has no voice data: install the package espeak-ng-data")
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: Voice) -> tuple[FloatArray, list[tuple[int, int, int, str]]]:
        """Samples, and events (type, character in the text from 0, sample, phone) in chronological order."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            accent = voice.name.partition("+")[0]  # its variant is not what is missing
            raise _NoVoiceError(f"espeak-ng has no voice {accent!r}; `espeak-ng --voices` lists them")
        settings = {
            _RATE: round(_ESPEAK_WORDS_PER_MINUTE * voice.rate),
            _PITCH: round(99 * voice.pitch),
            _RANGE: round(99 * voice.pitch_range),
        }
        for parameter, value in settings.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        self._events.clear()
        raw = text.encode()
        self._library.espeak_Synth(raw, len(raw) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None)
        if not self._chunks:
            return np.zeros(0, np.float32), []
        return from_int16(np.concatenate(self._chunks)), list(self._events)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type:
            event = events[i]
            if event.type in (_WORD_EVENT, _PHONEME_EVENT):
                phone = event.id.string.decode("utf-8", "replace") if event.type == _PHONEME_EVENT else ""
                self._events.append((event.type, event.text_position - 1, event.sample, phone))
            i += 1
        return 0


@lru_cache(maxsize=1)
def _library() -> _Library:
    return _Library()


def _speak(text: str, voice: Voice) -> tuple[Utterance, list[int | None]]:
    """The utterance, and for each of its phones the number of the word it belongs to."""
    engine = _library()
    samples, events = engine.speak(text, voice)
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    rate, length = engine.sample_rate, len(samples) / engine.sample_rate
    events = [event for event in events if event[2] / rate <= length]
    raw_phones = [event for event in events if event[0] == _PHONEME_EVENT]
    owners = _owners(spans, [position for _, position, _, _ in raw_phones])
    ends = [*(event[2] / rate for event in raw_phones[1:]), length]
    phones = tuple(
        Phone(event[3] or "_", event[2] / rate, max(end, event[2] / rate))
        for event, end in zip(raw_phones, ends, strict=True)
    )
    starts: list[float | None] = [None] * len(spans)
    stops: list[float | None] = [None] * len(spans)
    for phone, owner in zip(phones, owners, strict=True):
        if owner is None or phone.name.startswith("_"):
            continue
        if starts[owner] is None:
            starts[owner] = phone.start
        stops[owner] = phone.end
    words = spread([text[a:b] for a, b in spans], starts, stops, length)
    return Utterance(samples, rate, words, phones), owners


def _owners(spans: Sequence[tuple[int, int]], positions: Sequence[int]) -> list[int | None]:
    """The word of each phone. With MBROLA's voices only the first phone of a word has a position."""
    owners: list[int | None] = []
    for position in positions:
        before = owners[-1] if owners else None
        owners.append(before if position < 0 else _word_at(spans, position))
    return owners


def _word_at(spans: Sequence[tuple[int, int]], position: int) -> int | None:
    for i, (start, end) in enumerate(spans):
        if start <= position < end:
            return i
    return None
