"""More synthesisers for the built-in model's data: flite and festival, with word times, and pico and RHVoice.

    python recipes/tiny/voices.py texts/en.txt.gz data/flite-en --engine flite --clean --limit 800

flite runs inside the process through its C library, the others are programs. `slipstream data align` finds the word
times of pico and RHVoice.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import subprocess
import sys
import tempfile
import wave as wave_module
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.data.alignment import spread
from slipstream.data.augment import WaveAugment
from slipstream.data.manifest import add_to_manifest
from slipstream.data.synthesis import (
    SynthesisOptions,
    Utterance,
    Voice,
    from_int16,
    load_library,
    synthesise_texts,
)
from slipstream.data.texts import excluded, read_texts
from slipstream.data.tokenizer import plain_text
from slipstream.errors import BackendError, SlipstreamError

FLITE_VOICES: tuple[str, ...] = ("kal", "kal16", "awb", "rms", "slt")
FESTIVAL_VOICES: tuple[str, ...] = ("cmu_us_slt_arctic_hts",)
PICO_VOICES: dict[str, tuple[str, ...]] = {"en": ("en-US", "en-GB"), "fr": ("fr-FR",)}
# flite and festival have slt already; the licences of evgeniy-eng and lyubov allow no derived works.
RHVOICE_VOICES: tuple[str, ...] = ("alan", "bdl", "clb")


@dataclass(frozen=True)
class Engine:
    """One of these engines as a `Synthesiser`."""

    name: str
    voices: Mapping[str, Sequence[str]]
    speak: Callable[[str, Voice], Utterance]

    def draw(self, language: str, rate: float, rng: np.random.Generator, choices: random.Random) -> Voice:
        return Voice(choices.choice(self.voices[language]), rate, float(rng.random()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="one sentence per line, plain or gzipped")
    parser.add_argument("out", type=Path, help="a folder for the audio and manifest.jsonl")
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--language", default="en")
    parser.add_argument("--start", type=int, default=0, help="skip this number of sentences")
    parser.add_argument("--limit", type=int, help="speak N sentences only")
    parser.add_argument("--exclude", type=Path, help="a manifest whose sentences are not spoken")
    parser.add_argument("--clean", action="store_true", help="no reverberation, noise or telephone lines")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    augment = None if arguments.clean else WaveAugment()
    options = SynthesisOptions(ENGINES[arguments.engine], arguments.language, augment=augment, seed=arguments.seed)
    sentences = read_texts(arguments.texts)[arguments.start :][: arguments.limit]
    if arguments.exclude:
        unwanted = excluded(arguments.exclude)
        sentences = [sentence for sentence in sentences if plain_text(sentence) not in unwanted]

    def report(numbered: tuple[int, str], error: SlipstreamError) -> None:
        print(f"sentence {numbered[0] + 1}: {error}", file=sys.stderr)

    add_to_manifest(
        arguments.out / "manifest.jsonl", synthesise_texts(sentences, arguments.out, options, arguments.start, report)
    )


class _FliteWave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _Flite:
    """The C library: an utterance is a tree whose nodes are addressed by paths."""

    def __init__(self) -> None:
        self._library = load_library("flite")
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
            raise SlipstreamError(f"flite has no voice {name!r}; the voices are {', '.join(FLITE_VOICES)}")
        if name not in self._voices:
            register = getattr(load_library(f"flite_cmu_us_{name}"), f"register_cmu_us_{name}")
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
            samples = from_int16(np.ctypeslib.as_array(wave.samples, (wave.num_samples,)))
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
    if len(tokens) != len(words):  # flite splits some tokens ("..."): the times then belong to no word
        raise SlipstreamError(f"flite reads {len(tokens)} tokens where the text has {len(words)}: {text!r}")
    timed = spread(words, [t[1] for t in tokens], [t[2] for t in tokens], len(samples) / rate)
    return Utterance(samples, rate, timed, ())


# ------------------------------------------------------------------------------------------------------------- festival

_FESTIVAL_SCRIPT = """
(voice_{voice})
(Parameter.set 'Duration_Stretch {stretch})
(set! utt (utt.synth (Utterance Text "{text}")))
(utt.save.wave utt "{wave}" 'riff)
(define (print_words words)
  (if words
      (begin
        (format t " %f %f" (item.feat (car words) "word_start") (item.feat (car words) "word_end"))
        (print_words (cdr words)))))
(define (print_tokens token)
  (if token
      (begin
        (format t "token")
        (print_words (item.daughters token))
        (format t "\\n")
        (print_tokens (item.next token)))))
(print_tokens (utt.relation.first utt 'Token))
"""
"""Speaks one text and prints a line per token: the start and end of each of its words (punctuation: 0 0)."""


def _festival(text: str, voice: Voice) -> Utterance:
    if voice.name not in FESTIVAL_VOICES:
        raise SlipstreamError(f"festival has no voice {voice.name!r}; the voices are {', '.join(FESTIVAL_VOICES)}")
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
        raise SlipstreamError(f"pico has no voice {voice.name!r}; the voices are {known}")
    rate, pitch = _percents(voice)
    marked = f"<speed level='{rate}'><pitch level='{pitch}'>{_unmarked(text)}"
    with tempfile.TemporaryDirectory() as folder:
        wave = Path(folder) / "speech.wav"
        command = ["pico2wave", "-l", voice.name, "-w", str(wave), f"{marked}</pitch></speed>"]
        _run(command, text, "libttspico-utils")
        return Utterance(*_read_wave(wave, text, "pico2wave"), (), ())


def _rhvoice(text: str, voice: Voice) -> Utterance:
    if voice.name not in RHVOICE_VOICES:
        raise SlipstreamError(f"RHVoice has no voice {voice.name!r}; the voices are {', '.join(RHVOICE_VOICES)}")
    with tempfile.TemporaryDirectory() as folder:
        wave, spoken = Path(folder) / "speech.wav", Path(folder) / "speech.txt"
        spoken.write_text(text, encoding="utf-8")
        rate, pitch = _percents(voice)
        settings = ["-p", voice.name, "-r", str(rate), "-t", str(pitch)]
        _run(["RHVoice-test", "-i", str(spoken), "-o", str(wave), *settings], text, "rhvoice")
        return Utterance(*_read_wave(wave, text, "RHVoice-test"), (), ())


def _percents(voice: Voice) -> tuple[int, int]:
    """Speed and pitch relative to the voice's own; 75 to 125 % of its pitch sound natural."""
    return round(100 * voice.rate), round(75 + 50 * voice.pitch)


def _unmarked(text: str) -> str:
    return text.translate(str.maketrans("<>&", "   "))


def _run(command: Sequence[str], text: str, package: str) -> str:
    """Run a synthesiser; return what it prints."""
    try:
        result = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise BackendError(f"{command[0]} is not installed: install the package {package}") from error
    except subprocess.CalledProcessError as error:
        raise SlipstreamError(f"{command[0]} cannot speak {text!r}: {error.stderr.strip()[-200:]}") from error
    return result.stdout


def _read_wave(path: Path, text: str, program: str) -> tuple[FloatArray, int]:
    """Read the audio of `text`; some programs write none and report no error."""
    try:
        with wave_module.open(str(path)) as file:
            raw = file.readframes(file.getnframes())
            return from_int16(np.frombuffer(raw, "<i2")), file.getframerate()
    except (OSError, EOFError, wave_module.Error) as error:
        raise SlipstreamError(f"{program} wrote no audio for {text!r}: {error}") from error


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("flite", {"en": FLITE_VOICES}, _flite),
        Engine("festival", {"en": FESTIVAL_VOICES}, _festival),
        Engine("pico", PICO_VOICES, _pico),
        Engine("rhvoice", {"en": RHVOICE_VOICES}, _rhvoice),
    )
}

if __name__ == "__main__":
    main()
