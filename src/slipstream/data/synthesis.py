"""Speech synthesisers: espeak-ng, flite and festival, which say when each word is spoken, and pico and RHVoice.

espeak-ng and flite run inside the process through their C libraries, the others are child processes. espeak-ng keeps
one global voice: use one process for each stream of synthesis, not threads.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import subprocess
import tempfile
import wave as wave_module
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.data.alignment import spread
from slipstream.errors import BackendError, SlipstreamError
from slipstream.events import Word


@dataclass(frozen=True, slots=True)
class Phone:
    """One phone in espeak-ng's mnemonics, and the seconds between which it is spoken. `_` is silence."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """Synthesised speech: samples `[S]` in [-1, 1], and its words and phones where the engine tells them."""

    samples: FloatArray
    sample_rate: int
    words: tuple[Word, ...]
    phones: tuple[Phone, ...]


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of one engine. `rate` 1 is the engine's normal speed; `pitch` and `pitch_range` are 0 to 1.

    `name` is what the engine calls it: an espeak-ng voice with its variant (`en-us+f3`), a flite voice (`slt`), a
    festival voice (`cmu_us_slt_arctic_hts`), a language of pico (`fr-FR`), an RHVoice voice (`clb`). flite and festival
    have no pitch to set, and only espeak-ng has a range of it.
    """

    engine: str
    name: str
    rate: float = 1.0
    pitch: float = 0.5
    pitch_range: float = 0.5


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
"""espeak-ng's accents by language, the plainest first."""

# Whispers, robots and other effects are left out: nobody speaks so.
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
"""espeak-ng's voice variants that sound like people."""

FLITE_VOICES: tuple[str, ...] = ("kal", "kal16", "awb", "rms", "slt")
FESTIVAL_VOICES: tuple[str, ...] = ("cmu_us_slt_arctic_hts",)
PICO_VOICES: dict[str, tuple[str, ...]] = {"en": ("en-US", "en-GB"), "fr": ("fr-FR",)}
# slt speaks in flite and festival already; the licences of evgeniy-eng and lyubov allow nothing to be made from them.
RHVOICE_VOICES: tuple[str, ...] = ("alan", "bdl", "clb")


def synthesise(text: str, voice: Voice) -> Utterance:
    """Speak `text` with `voice`; its words are those between blanks, in order, or none where the engine has no times.

    Raises `BackendError` when the engine is not installed, `SlipstreamError` for a voice it does not have and a text
    that it cannot speak.
    """
    engines: dict[str, Callable[[str, Voice], Utterance]] = {
        "espeak-ng": _espeak,
        "flite": _flite,
        "festival": _festival,
        "pico": _pico,
        "rhvoice": _rhvoice,
    }
    if voice.engine not in engines:
        raise SlipstreamError(f"no synthesiser {voice.engine!r}; there are {', '.join(engines)}")
    if not any(map(str.isalpha, text)):
        raise SlipstreamError(f"there are no letters in {text!r}")
    spoken = engines[voice.engine](text, voice)
    if not len(spoken.samples):
        raise SlipstreamError(f"{voice.engine} says nothing for {text!r}")
    return spoken


def phones_of(text: str, language: str) -> list[tuple[str, ...]]:
    """The phones of each word of `text` (split at blanks) as espeak-ng says it in `language`.

    A word that espeak-ng joins to its neighbour has none of its own. Raises `SlipstreamError` for other languages than
    those of `ESPEAK_ACCENTS`.
    """
    if language not in ESPEAK_ACCENTS:
        raise SlipstreamError(f"no phones are known of language {language!r}; there are {', '.join(ESPEAK_ACCENTS)}")
    utterance, owners = _speak_espeak(text, Voice("espeak-ng", ESPEAK_ACCENTS[language][0], rate=2.0))
    words: list[list[str]] = [[] for _ in text.split()]
    for phone, owner in zip(utterance.phones, owners, strict=True):
        if owner is not None and not phone.name.startswith("_"):
            words[owner].append(phone.name)
    return [tuple(word) for word in words]


# ------------------------------------------------------------------------------------------------------------ espeak-ng

_WORD_EVENT, _PHONEME_EVENT = 1, 7
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _DONT_EXIT = 1, 0x8000
_RATE, _PITCH, _RANGE = 1, 3, 4
_BY_CHARACTER, _UTF8 = 1, 1
_ESPEAK_WORDS_PER_MINUTE = 175


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


class _Espeak:
    """The C library, which hands out audio and events by a callback."""

    def __init__(self) -> None:
        self._library = _library("espeak-ng")
        self._chunks: list[Any] = []
        self._events: list[tuple[int, int, int, str]] = []
        self._callback = _EspeakCallback(self._receive)  # kept: C holds only its address
        self.sample_rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 1000, None, _PHONEME_EVENTS | _DONT_EXIT)
        if self.sample_rate <= 0:
            raise BackendError("espeak-ng finds no voice data: install the package espeak-ng-data")
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: Voice) -> tuple[FloatArray, list[tuple[int, int, int, str]]]:
        """Samples, and events (type, character in the text from 0, sample, phone) in order of time."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise SlipstreamError(f"espeak-ng has no voice {voice.name!r}; `espeak-ng --voices` lists them")
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
        return _from_int16(np.concatenate(self._chunks)), list(self._events)

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
def _espeak_library() -> _Espeak:
    return _Espeak()


def _espeak(text: str, voice: Voice) -> Utterance:
    return _speak_espeak(text, voice)[0]


def _speak_espeak(text: str, voice: Voice) -> tuple[Utterance, list[int | None]]:
    """The utterance, and for each of its phones the number of the word it belongs to."""
    engine = _espeak_library()
    samples, events = engine.speak(text, voice)
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    rate, length = engine.sample_rate, len(samples) / engine.sample_rate
    events = [event for event in events if event[2] / rate <= length]
    raw_phones = [event for event in events if event[0] == _PHONEME_EVENT]
    owners = [_word_at(spans, position) for _, position, _, _ in raw_phones]
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


def _word_at(spans: Sequence[tuple[int, int]], position: int) -> int | None:
    for i, (start, end) in enumerate(spans):
        if start <= position < end:
            return i
    return None


# ---------------------------------------------------------------------------------------------------------------- flite


class _FliteWave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _Flite:
    """The C library: an utterance is a tree whose nodes are read by paths."""

    def __init__(self) -> None:
        self._library = _library("flite")
        pointers = (
            "flite_synth_text",
            "utt_relation",
            "relation_head",
            "item_next",
            "item_daughter",
            "item_parent",
        )
        for name in pointers:
            getattr(self._library, name).restype = ctypes.c_void_p
        self._library.utt_wave.restype = ctypes.POINTER(_FliteWave)
        self._library.flite_ffeature_float.restype = ctypes.c_float
        self._library.flite_ffeature_string.restype = ctypes.c_char_p
        self._library.flite_init()
        self._voices: dict[str, ctypes.c_void_p] = {}

    def voice(self, name: str) -> ctypes.c_void_p:
        if name not in FLITE_VOICES:
            raise SlipstreamError(f"flite has no voice {name!r}; there are {', '.join(FLITE_VOICES)}")
        if name not in self._voices:
            register = getattr(_library(f"flite_cmu_us_{name}"), f"register_cmu_us_{name}")
            register.restype = ctypes.c_void_p
            self._voices[name] = ctypes.c_void_p(register(None))
        return self._voices[name]

    def speak(self, text: str, voice: Voice) -> tuple[FloatArray, int, list[tuple[str, float | None, float | None]]]:
        """Samples, their rate, and (token, start, end); a token that is not spoken has no times."""
        handle = self.voice(voice.name)
        features = ctypes.c_void_p.from_address(handle.value + ctypes.sizeof(ctypes.c_void_p))  # type: ignore[operator]
        self._library.feat_set_float(features, b"duration_stretch", ctypes.c_float(1 / voice.rate))
        utterance = ctypes.c_void_p(self._library.flite_synth_text(text.encode(), handle))
        try:
            wave = self._library.utt_wave(utterance).contents
            samples = _from_int16(np.ctypeslib.as_array(wave.samples, (wave.num_samples,)))
            tokens = []
            relation = ctypes.c_void_p(self._library.utt_relation(utterance, b"Token"))
            token = self._library.relation_head(relation)
            while token:
                tokens.append(self._token(token))
                token = self._library.item_next(ctypes.c_void_p(token))
            return samples, wave.sample_rate, tokens
        finally:
            self._library.delete_utterance(utterance)

    def _token(self, token: int) -> tuple[str, float | None, float | None]:
        name = self._library.flite_ffeature_string(ctypes.c_void_p(token), b"name").decode()
        word = self._library.item_daughter(ctypes.c_void_p(token))
        start = end = None
        while word:
            item = ctypes.c_void_p(word)
            first = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
            last = b"R:SylStructure.daughtern.daughtern.R:Segment.end"
            word_end = self._library.flite_ffeature_float(item, last)
            if word_end > 0:
                start = self._library.flite_ffeature_float(item, first) if start is None else start
                end = word_end
            word = self._library.item_next(item)
        return name, start, end


@lru_cache(maxsize=1)
def _flite_library() -> _Flite:
    return _Flite()


def _flite(text: str, voice: Voice) -> Utterance:
    words = text.split()
    samples, rate, tokens = _flite_library().speak(text, voice)
    if len(tokens) != len(words):  # flite splits some tokens ("..."), and then the times have no owner
        raise SlipstreamError(f"flite reads {len(tokens)} tokens where the text has {len(words)}: {text!r}")
    timed = spread(words, [t[1] for t in tokens], [t[2] for t in tokens], len(samples) / rate)
    return Utterance(samples, rate, timed, ())


# ------------------------------------------------------------------------------------------------------------- festival

_FESTIVAL_SCRIPT = """
(voice_{voice})
(Parameter.set 'Duration_Stretch {stretch})
(set! utt (utt.synth (Utterance Text "{text}")))
(utt.save.wave utt "{wave}" 'riff)
(define (say_words words)
  (if words
      (begin
        (format t " %f %f" (item.feat (car words) "word_start") (item.feat (car words) "word_end"))
        (say_words (cdr words)))))
(define (say_tokens token)
  (if token
      (begin
        (format t "token")
        (say_words (item.daughters token))
        (format t "\\n")
        (say_tokens (item.next token)))))
(say_tokens (utt.relation.first utt 'Token))
"""
"""Speaks one text and prints a line for each token: the start and end of each word read for it (punctuation: 0 0)."""


def _festival(text: str, voice: Voice) -> Utterance:
    if voice.name not in FESTIVAL_VOICES:
        raise SlipstreamError(f"festival has no voice {voice.name!r}; there are {', '.join(FESTIVAL_VOICES)}")
    words = text.split()
    with tempfile.TemporaryDirectory() as folder:
        wave, script = Path(folder) / "speech.wav", Path(folder) / "speak.scm"
        spoken = text.replace("\\", "").replace('"', "")
        script.write_text(
            _FESTIVAL_SCRIPT.format(voice=voice.name, stretch=1 / voice.rate, text=spoken, wave=wave),
            encoding="latin-1",
            errors="replace",
        )
        printed = _run(["festival", "-b", str(script)], text, "festival")
        samples, rate = _read_wave(wave, text, "festival")
    lines = [line.split()[1:] for line in printed.splitlines() if line.startswith("token")]
    if len(lines) != len(words):
        raise SlipstreamError(f"festival reads {len(lines)} tokens where the text has {len(words)}: {text!r}")
    spans = [[float(x) for x in line if float(x) > 0] for line in lines]
    starts, ends = [min(s) if s else None for s in spans], [max(s) if s else None for s in spans]
    return Utterance(samples, rate, spread(words, starts, ends, len(samples) / rate), ())


# ----------------------------------------------------------------------------------------------------- pico and RHVoice


def _pico(text: str, voice: Voice) -> Utterance:
    if all(voice.name not in names for names in PICO_VOICES.values()):
        known = ", ".join(name for names in PICO_VOICES.values() for name in names)
        raise SlipstreamError(f"pico has no voice {voice.name!r}; there are {known}")
    rate, pitch = _percents(voice)
    marked = f"<speed level='{rate}'><pitch level='{pitch}'>{_unmarked(text)}"
    with tempfile.TemporaryDirectory() as folder:
        wave = Path(folder) / "speech.wav"
        command = ["pico2wave", "-l", voice.name, "-w", str(wave), f"{marked}</pitch></speed>"]
        _run(command, text, "libttspico-utils")
        return Utterance(*_read_wave(wave, text, "pico2wave"), (), ())


def _rhvoice(text: str, voice: Voice) -> Utterance:
    if voice.name not in RHVOICE_VOICES:
        raise SlipstreamError(f"RHVoice has no voice {voice.name!r} here; there are {', '.join(RHVOICE_VOICES)}")
    with tempfile.TemporaryDirectory() as folder:
        wave, said = Path(folder) / "speech.wav", Path(folder) / "speech.txt"
        said.write_text(text, encoding="utf-8")
        rate, pitch = _percents(voice)
        settings = ["-p", voice.name, "-r", str(rate), "-t", str(pitch)]
        _run(["RHVoice-test", "-i", str(said), "-o", str(wave), *settings], text, "rhvoice")
        return Utterance(*_read_wave(wave, text, "RHVoice-test"), (), ())


def _percents(voice: Voice) -> tuple[int, int]:
    """Speed and pitch of the voice's own, which carries three quarters to five quarters of its pitch well."""
    return round(100 * voice.rate), round(75 + 50 * voice.pitch)


def _unmarked(text: str) -> str:
    return text.translate(str.maketrans("<>&", "   "))


def _run(command: Sequence[str], text: str, package: str) -> str:
    """What a synthesiser that is a program prints."""
    try:
        result = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise BackendError(f"{command[0]} is not installed: install the package {package}") from error
    except subprocess.CalledProcessError as error:
        raise SlipstreamError(f"{command[0]} cannot speak {text!r}: {error.stderr.strip()[-200:]}") from error
    return result.stdout


def _read_wave(path: Path, text: str, program: str) -> tuple[FloatArray, int]:
    """What a program that ended well has written of `text`; some write nothing of what they cannot speak."""
    try:
        with wave_module.open(str(path)) as file:
            raw = file.readframes(file.getnframes())
            return _from_int16(np.frombuffer(raw, "<i2")), file.getframerate()
    except (OSError, EOFError, wave_module.Error) as error:
        raise SlipstreamError(f"{program} leaves no audio of {text!r}: {error}") from error


def _from_int16(samples: npt.NDArray[np.int16]) -> FloatArray:
    scaled: FloatArray = samples.astype(np.float32) / np.float32(32768)
    return scaled


def _library(name: str) -> ctypes.CDLL:
    path = ctypes.util.find_library(name)
    if path is None:
        raise BackendError(f"lib{name} is not installed: install the package {name.split('_')[0]}")
    return ctypes.CDLL(path)
