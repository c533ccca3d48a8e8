"""Synthetic recordings: texts spoken in many voices, speeds, pitches and rooms by any `Synthesiser`."""

from __future__ import annotations

import ctypes
import ctypes.util
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.audio import SAMPLE_RATE
from slipstream.data.augment import WaveAugment, resample_speech
from slipstream.data.manifest import Recording, each
from slipstream.data.wave import write_wave
from slipstream.errors import BackendError, SlipstreamError
from slipstream.events import Word


@dataclass(frozen=True, slots=True)
class Phone:
    """One phone in espeak-ng's mnemonics, with its start and end in seconds. `_` is silence."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """Synthesised speech: samples `[S]` in [-1, 1], and words and phones where the engine reports their times."""

    samples: FloatArray
    sample_rate: int
    words: tuple[Word, ...]
    phones: tuple[Phone, ...]


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice by its engine's name for it. `rate` 1 is the normal speed; `pitch` and `pitch_range` are 0 to 1."""

    name: str
    rate: float = 1.0
    pitch: float = 0.5
    pitch_range: float = 0.5


class Synthesiser(Protocol):
    """A speech synthesiser. `voices`: names by language."""

    @property
    def name(self) -> str: ...
    @property
    def voices(self) -> Mapping[str, Sequence[str]]: ...
    def draw(self, language: str, rate: float, rng: np.random.Generator, choices: random.Random) -> Voice:
        """Draw a voice of a language, at the speed `rate`."""
        ...

    @property
    def speak(self) -> Callable[[str, Voice], Utterance]:
        """Speak a text. Its words are those between spaces, in order, or none where the engine reports no times.

        Raises `BackendError` where the engine is not installed, `SlipstreamError` for a voice that it lacks and a text
        that it cannot speak.
        """
        ...


@dataclass(frozen=True, slots=True)
class SynthesisOptions:
    """How texts are spoken and changed.

    Attributes:
        rate: largest factor by which the speed is drawn.
        formant: largest factor by which pitch and formants are drawn, by resampling.
        augment: rooms, noise and lines, or None for clean speech.
    """

    engine: Synthesiser
    language: str
    rate: float = 1.4
    formant: float = 1.2
    augment: WaveAugment | None = None
    seed: int = 0


def synthesise_texts(
    texts: Iterable[str],
    folder: Path,
    options: SynthesisOptions,
    first: int = 0,
    on_error: Callable[[tuple[int, str], SlipstreamError], None] | None = None,
) -> Iterator[Recording]:
    """Speak each text in a drawn voice and write it below `folder`.

    Args:
        first: number of the first text; file names contain the numbers, and another `first` draws other voices.
        on_error: called with each (number, text) that the engine cannot speak or time.

    Returns:
        The recordings, with the times of words and phones where the engine reports them.

    Raises:
        SlipstreamError: when the engine has no voice for the language.
    """
    engine, language = options.engine, options.language
    if language not in engine.voices:
        known = ", ".join(engine.voices)
        raise SlipstreamError(f"{engine.name} has no voice for the language {language!r}; its languages are {known}")
    folder.mkdir(parents=True, exist_ok=True)
    rng, choices = np.random.default_rng(options.seed + first), random.Random(options.seed + first)

    def speak(numbered: tuple[int, str]) -> Recording:
        number, text = numbered
        voice = engine.draw(language, _factor(rng, options.rate), rng, choices)
        spoken = synthesise(text, engine, voice)
        factor = _factor(rng, options.formant)
        samples = resample_speech(spoken.samples, spoken.sample_rate, factor, SAMPLE_RATE)
        if options.augment is not None:
            samples = options.augment(samples, SAMPLE_RATE, rng)
        path = folder / f"{engine.name}-{language}-{options.seed}-{number:07d}.wav"
        write_wave(path, samples)
        return Recording(
            path,
            text,
            tuple(Word(w.text, w.start / factor, w.end / factor) for w in spoken.words),
            tuple((phone.name, phone.start / factor) for phone in spoken.phones),
            len(samples) / SAMPLE_RATE,
            voice.name,
            language,
            f"{engine.name}-{language}",
            "train",
        )

    return each(enumerate(texts, first), speak, on_error)


def synthesise(text: str, engine: Synthesiser, voice: Voice) -> Utterance:
    """Speak `text`. Raises `SlipstreamError` for a text without letters or sound, and as `Synthesiser.speak` does."""
    if not any(map(str.isalpha, text)):
        raise SlipstreamError(f"there are no letters in {text!r}")
    spoken = engine.speak(text, voice)
    if not len(spoken.samples):
        raise SlipstreamError(f"{engine.name} produces no sound for {text!r}")
    return spoken


def from_int16(samples: npt.NDArray[np.int16]) -> FloatArray:
    """Scale 16-bit samples to [-1, 1]."""
    scaled: FloatArray = samples.astype(np.float32) / np.float32(32768)
    return scaled


def load_library(name: str) -> ctypes.CDLL:
    """Load a synthesiser's C library. Raises `BackendError` where it is not installed."""
    # Without a compiler or ldconfig, `find_library` finds nothing, not even on LD_LIBRARY_PATH.
    for path in (ctypes.util.find_library(name), f"lib{name}.so.1"):
        if path is not None:
            with suppress(OSError):
                return ctypes.CDLL(path)
    raise BackendError(f"lib{name} is not installed: install the package {name.split('_')[0]}")


def _factor(rng: np.random.Generator, largest: float) -> float:
    return float(np.exp(rng.uniform(-np.log(largest), np.log(largest))))
