"""Making training data: texts to synthetic recordings, recordings to word times, manifests to packs."""

from __future__ import annotations

import gzip
import random
import wave
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from slipstream.arrays import FloatArray
from slipstream.audio import SAMPLE_RATE, load
from slipstream.backends.torch.mel import LogMel
from slipstream.backends.torch.mimi import Mimi
from slipstream.data.alignment import align_words
from slipstream.data.augment import WaveAugment, resample_speech
from slipstream.data.manifest import Recording, each, read_manifest
from slipstream.data.packs import Clip, PackKind, log_mel
from slipstream.data.phones import LABEL_DELAY, PhoneInventory, positions
from slipstream.data.synthesis import (
    ESPEAK_ACCENTS,
    ESPEAK_VARIANTS,
    FESTIVAL_VOICES,
    FLITE_VOICES,
    PICO_VOICES,
    RHVOICE_VOICES,
    Voice,
    phones_of,
    synthesise,
)
from slipstream.data.tokenizer import plain_text
from slipstream.errors import SlipstreamError
from slipstream.events import Word
from slipstream.model.config import CodecConfig, MelConfig

LeftOut = Callable[[Recording, SlipstreamError], None]
"""Hears of a recording that cannot be used, and why; without it, that error is raised."""


@dataclass(frozen=True, slots=True)
class SynthesisOptions:
    """What voices speak, and how they are changed.

    `engine` and `language` of all; `rate` and `formant` are largest factors by which speed, and pitch with formants,
    are drawn (formants by resampling); `augment`: rooms, noise and lines, or None for clean speech.
    """

    engine: str
    language: str
    rate: float = 1.4
    formant: float = 1.2
    augment: WaveAugment | None = None
    seed: int = 0


def read_texts(path: Path) -> list[str]:
    """The lines of a text file, plain or gzipped, without typographic quotes, which synthesisers read aloud.

    Raises `SlipstreamError` for a file that cannot be read, is not UTF-8, or has nothing but blanks in it.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise SlipstreamError(f"{path}, line {number}: not UTF-8; save the text in that encoding") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SlipstreamError(f"{path}: not a whole gzip file: {error}") from error
    except OSError as error:
        raise SlipstreamError(f"{path}: cannot be read: {error.strerror}") from error
    lines = (" ".join(line.translate(_QUOTES).split()) for line in text.splitlines())
    texts = [line for line in lines if line]
    if not texts:
        raise SlipstreamError(f"{path}: has no sentences; a line of the file is one")
    return texts


def excluded(manifest: Path) -> set[str]:
    """The sentences of a manifest as plain text, to keep out of training."""
    return {plain for recording in read_manifest(manifest) if (plain := plain_text(recording.text))}


def synthesise_texts(
    texts: Iterable[str],
    folder: Path,
    options: SynthesisOptions,
    first: int = 0,
    on_error: Callable[[tuple[int, str], SlipstreamError], None] | None = None,
) -> Iterator[Recording]:
    """Speak each text in a drawn voice, write it below `folder`, and give the recordings, with the times of words and
    phones where the engine tells them.

    The files' names bear the texts' numbers, from `first` on; another `first` draws other voices. `on_error` hears of
    each (number, text) that the engine cannot speak or time. Raises `SlipstreamError` when the engine has no voice for
    the language.
    """
    voices = _voices(options)
    folder.mkdir(parents=True, exist_ok=True)
    rng, draw = np.random.default_rng(options.seed + first), random.Random(options.seed + first)

    def speak(numbered: tuple[int, str]) -> Recording:
        number, text = numbered
        voice = _voice(options, voices, rng, draw)
        spoken = synthesise(text, voice)
        factor = _factor(rng, options.formant)
        samples = resample_speech(spoken.samples, spoken.sample_rate, factor, SAMPLE_RATE)
        if options.augment is not None:
            samples = options.augment(samples, SAMPLE_RATE, rng)
        path = folder / f"{options.engine}-{options.language}-{options.seed}-{number:07d}.wav"
        write_wave(path, samples)
        return Recording(
            path,
            text,
            tuple(Word(w.text, w.start / factor, w.end / factor) for w in spoken.words),
            tuple((phone.name, phone.start / factor) for phone in spoken.phones),
            len(samples) / SAMPLE_RATE,
            voice.name,
            options.language,
            f"{options.engine}-{options.language}",
            "train",
        )

    return each(enumerate(texts, first), speak, on_error)


class Aligner:
    """Finds word times with a codec that hears log-mel frames, and a head that names phones from its output."""

    def __init__(self, codec: Mimi, head: nn.Linear, phones: PhoneInventory) -> None:
        self.codec, self.head, self.phones = codec.eval(), head, phones

    @torch.inference_mode()
    def align(self, recording: Recording) -> tuple[Recording, float]:
        """The recording with the times of its words and phones, and how well they fit (`Alignment.fit`).

        Raises `SlipstreamError` when the text is too long for the audio, its language is not known, or the audio cannot
        be read.
        """
        samples = load(recording.audio)
        pronounced = phones_of(recording.text, recording.lang)
        numbers = [[n for n in map(self.phones.number, word) if n] for word in pronounced]
        padded = np.pad(samples, (0, -len(samples) % self.codec.config.frame_samples))
        mel = log_mel(_front_end(self.codec), padded)
        x_BPD = positions(self.codec, torch.from_numpy(mel.T.copy())[None])
        log_probs: FloatArray = self.head(x_BPD).log_softmax(-1)[0].numpy()
        seconds = self.codec.config.hop_samples / self.codec.config.sample_rate
        lag = 0.0 if self.codec.config.whisper else LABEL_DELAY * seconds
        found = align_words(log_probs, numbers, recording.text.split(), seconds, lag)
        phones = tuple((self.phones.names[number], start) for number, start in found.phones)
        return replace(recording, words=found.words, phones=phones), found.fit


def cut(recording: Recording, folder: Path, longest: float, number: int = 0) -> Iterator[Recording]:
    """Pieces of at most `longest` seconds, cut where the pause between two words is widest and written below `folder`.

    A recording that is no longer is given as it is; a piece with one word may stay longer. `number`: that of the
    recording, which keeps the names of pieces apart. Raises `SlipstreamError` when the words have no times.
    """
    if recording.seconds is not None and recording.seconds <= longest:
        yield recording
        return
    samples = load(recording.audio)
    seconds = len(samples) / SAMPLE_RATE
    if seconds <= longest:
        yield replace(recording, seconds=seconds)
        return
    if not recording.words:
        raise SlipstreamError(f"{recording.audio}: cutting needs the words' times; `slipstream data align` finds them")
    folder.mkdir(parents=True, exist_ok=True)
    for part, (words, start, end) in enumerate(_pieces(recording.words, 0.0, seconds, longest)):
        piece = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        path = folder / f"{recording.audio.stem}-{number:06d}-{part:03d}.wav"
        write_wave(path, piece)
        moved = tuple(Word(w.text, w.start - start, w.end - start) for w in words)
        phones = tuple((name, at - start) for name, at in recording.phones if start <= at < end)
        text = " ".join(word.text for word in words)
        seconds = len(piece) / SAMPLE_RATE
        yield replace(recording, audio=path, text=text, words=moved, phones=phones, seconds=seconds)


def _pieces(
    words: Sequence[Word], start: float, end: float, longest: float
) -> Iterator[tuple[Sequence[Word], float, float]]:
    """Runs of words and where they start and end. A pause counts for less, the nearer it lies to either end."""
    if end - start <= longest or len(words) < 2:
        yield words, start, end
        return
    middles = [(a.end + b.start) / 2 for a, b in pairwise(words)]
    room = [min(m - start, end - m) for m in middles]
    widths = [max(b.start - a.end, 0.01) for a, b in pairwise(words)]
    best = max(range(len(widths)), key=lambda i: widths[i] * min(room[i], longest / 2))
    yield from _pieces(words[: best + 1], start, middles[best], longest)
    yield from _pieces(words[best + 1 :], middles[best], end, longest)


def mel_items(
    recordings: Iterable[Recording],
    config: MelConfig,
    sample_rate: int = SAMPLE_RATE,
    on_error: LeftOut | None = None,
) -> tuple[PackKind, Iterator[tuple[FloatArray, Clip]]]:
    """The kind and content of a pack of log-mel frames, for `write_pack`."""
    front_end = LogMel(config, sample_rate)
    silence = log_mel(front_end, np.zeros(config.window, np.float32))[-1]
    kind = PackKind("mel", config.n_mels, sample_rate / config.hop, tuple(map(float, silence)))
    return kind, each(recordings, lambda r: (log_mel(front_end, load(r.audio, sample_rate)), _with_phones(r)), on_error)


def sample_items(
    recordings: Iterable[Recording], sample_rate: int = SAMPLE_RATE, on_error: LeftOut | None = None
) -> tuple[PackKind, Iterator[tuple[npt.NDArray[np.int16], Clip]]]:
    """The kind and content of a pack of samples, for `write_pack`; phones only where they are timed."""

    def item(recording: Recording) -> tuple[npt.NDArray[np.int16], Clip]:
        samples = np.clip(load(recording.audio, sample_rate), -1, 1)
        return np.round(samples * 32767).astype(np.int16)[:, None], _clip(recording)

    return PackKind("samples", 1, float(sample_rate), (0.0,)), each(recordings, item, on_error)


def token_items(
    recordings: Iterable[Recording], codec: Mimi, device: str = "cpu", on_error: LeftOut | None = None
) -> tuple[PackKind, Iterator[tuple[npt.NDArray[np.int64], Clip]]]:
    """The kind and content of a pack of codec tokens, for `write_pack`."""
    config: CodecConfig = codec.config
    codec = codec.eval().to(device)

    @torch.inference_mode()
    def encode(samples: FloatArray) -> npt.NDArray[np.int64]:
        codes, _ = codec.encode(torch.from_numpy(samples)[None].to(device))
        tokens: npt.NDArray[np.int64] = codes[0].T.cpu().numpy()
        return tokens

    # The codec remembers some seconds: only a long silence ends in the tokens that silence has.
    silence = encode(np.zeros(10 * config.sample_rate, np.float32))[-1]
    kind = PackKind("tokens", config.num_codebooks, config.frame_rate, tuple(map(float, silence)))
    return kind, each(recordings, lambda r: (encode(load(r.audio, config.sample_rate)), _clip(r)), on_error)


def write_wave(path: Path, samples: FloatArray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write mono 16-bit samples."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", **dict.fromkeys('"«»“”*_', " ")})  # noqa: RUF001


def _voices(options: SynthesisOptions) -> tuple[str, ...]:
    """The engine's voices of the language; of espeak-ng its accents."""
    known = _VOICES.get(options.engine, {})
    if options.language not in known:
        there = ", ".join(known) or "none"
        raise SlipstreamError(f"no voice of {options.engine} speaks {options.language!r}; its languages are {there}")
    return known[options.language]


def _voice(options: SynthesisOptions, voices: Sequence[str], rng: np.random.Generator, draw: random.Random) -> Voice:
    rate = _factor(rng, options.rate)
    if options.engine == "espeak-ng":
        accent = draw.choice(voices)
        # Half of a hundred variants sound alike: one voice in eight is the plain one.
        name = accent if draw.random() < 1 / 8 else f"{accent}+{draw.choice(ESPEAK_VARIANTS)}"
        return Voice(options.engine, name, rate, float(rng.uniform(0.1, 0.95)), float(rng.uniform(0.2, 0.8)))
    return Voice(options.engine, draw.choice(voices), rate, float(rng.random()))


_VOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "espeak-ng": ESPEAK_ACCENTS,
    "flite": {"en": FLITE_VOICES},
    "festival": {"en": FESTIVAL_VOICES},
    "pico": PICO_VOICES,
    "rhvoice": {"en": RHVOICE_VOICES},
}


def _factor(rng: np.random.Generator, largest: float) -> float:
    return float(np.exp(rng.uniform(-np.log(largest), np.log(largest))))


def _front_end(codec: Mimi) -> LogMel:
    if codec.mel is None:
        raise SlipstreamError("an aligner is a log-mel codec with phone heads: this one hears samples")
    return codec.mel


def _clip(recording: Recording) -> Clip:
    """What a pack says of a recording."""
    words = tuple((w.text, w.start, w.end) for w in recording.words)
    return Clip(0, 0, recording.text, recording.lang, recording.dataset, recording.speaker, words, recording.phones)


def _with_phones(recording: Recording) -> Clip:
    """The same, with the phones of its text where none are timed."""
    if recording.phones:
        return _clip(recording)
    spoken = tuple(phone for word in phones_of(recording.text, recording.lang) for phone in word)
    return replace(_clip(recording), phone_sequence=spoken)
