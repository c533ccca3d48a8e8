"""Sounds without words, from which a model learns to write nothing: music, drums, hum, tones and noises.

python recipes/tiny/sounds.py data/sounds --hours 1.5
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.audio import SAMPLE_RATE
from slipstream.data.augment import WaveAugment, coloured_noise
from slipstream.data.manifest import Recording, add_to_manifest
from slipstream.data.wave import write_wave

Kind = Callable[[int, np.random.Generator], FloatArray]
"""Draws N samples of one kind of sound, with a root mean square of one."""
DATASET = "sounds"
_AUGMENT = WaveAugment(noise=0.15, clip=0.02)
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 6, 7, 10), tuple(range(12)))


def make_sounds(folder: Path, hours: float, languages: tuple[str, ...], seed: int) -> Iterator[Recording]:
    """Write sounds of 3 to 12 s below `folder`, `hours` in total; yield them as recordings without text.

    They take `languages` in turn, since a training row keeps its language.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    kinds: tuple[Kind, ...] = (music, music, drums, hum, tones, noise)
    seconds, number = 0.0, 0
    while seconds < hours * 3600:
        length = round(rng.uniform(3, 12) * SAMPLE_RATE)
        kind = kinds[number % len(kinds)]
        samples = kind(length, rng)
        if kind is music and rng.random() < 0.4:
            samples = samples + drums(length, rng) * np.float32(rng.uniform(0.2, 1.0))
        path = folder / f"{DATASET}-{seed}-{number:06d}.wav"
        write_wave(path, _AUGMENT(samples, SAMPLE_RATE, rng))
        language = languages[number % len(languages)]
        yield Recording(path, "", (), (), length / SAMPLE_RATE, kind.__name__, language, DATASET, "train")
        seconds, number = seconds + length / SAMPLE_RATE, number + 1


def music(length: int, rng: np.random.Generator) -> FloatArray:
    """One to four voices of notes of a scale, each with overtones, an attack and a decay, some with vibrato."""
    out = np.zeros(length, np.float64)
    scale = _SCALES[int(rng.integers(len(_SCALES)))]
    beat = SAMPLE_RATE * 60 / rng.uniform(50, 180)
    for _ in range(int(rng.integers(1, 5))):
        timbre = rng.uniform(0.2, 1, 8) * np.arange(1, 9) ** -rng.uniform(0.5, 2.5)
        centre, decay, vibrato = rng.uniform(40, 80), rng.uniform(0.3, 8), rng.uniform(0, 0.4) * (rng.random() < 0.4)
        degree, at = int(rng.integers(-7, 8)), 0.0
        while at < length:
            duration = beat * float(rng.choice([0.25, 0.5, 0.5, 1, 1, 2, 4]))
            start, stop = int(at), min(length, int(at + duration))
            octave, step = divmod(degree, len(scale))
            note = centre + 12 * octave + scale[step]
            if rng.random() < 0.85 and stop > start:
                out[start:stop] += _note(stop - start, note, timbre, decay, vibrato)
            degree = int(np.clip(degree + rng.integers(-3, 4), -10, 10))
            at += duration
    return _unit(out)


def drums(length: int, rng: np.random.Generator) -> FloatArray:
    """A repeated pattern of one to three kinds of drum."""
    out = np.zeros(length, np.float64)
    beat = SAMPLE_RATE * 60 / rng.uniform(70, 180) / 4
    for _ in range(int(rng.integers(1, 4))):
        size = int(SAMPLE_RATE * rng.uniform(0.03, 0.3))
        time = np.arange(size) / SAMPLE_RATE
        drum = np.sin(2 * np.pi * rng.uniform(50, 400) * time * np.exp(-3 * time)) * rng.uniform(0, 1)
        hit = (coloured_noise(size, rng.uniform(-1, 2), rng) + drum) * np.exp(-time * rng.uniform(10, 80))
        pattern = rng.random(16) < rng.uniform(0.15, 0.6)
        for k in range(int(length / beat)):
            start = int(k * beat)
            if pattern[k % 16]:
                out[start : start + size] += hit[: length - start] * rng.uniform(0.6, 1)
    return _unit(out)


def hum(length: int, rng: np.random.Generator) -> FloatArray:
    """A machine: a low tone with overtones, and noise, both swelling slowly."""
    time = np.arange(length) / SAMPLE_RATE
    overtones = rng.uniform(0, 1, 12) / np.arange(1, 13)
    base = rng.choice([50.0, 60.0, rng.uniform(25, 300)])
    tone = np.sum([a * np.sin(2 * np.pi * base * k * time) for k, a in enumerate(overtones, 1)], axis=0)
    swell = 1 + rng.uniform(0, 0.8) * np.sin(2 * np.pi * rng.uniform(0.05, 3) * time)
    rush = coloured_noise(length, rng.uniform(0, 2), rng)
    return _unit(swell * (_unit(tone) * rng.uniform(0, 1) + _unit(rush) * rng.uniform(0.1, 1)))


def tones(length: int, rng: np.random.Generator) -> FloatArray:
    """Bells, ringing and sirens: tones that start, slide and stop, repeatedly."""
    time = np.arange(length) / SAMPLE_RATE
    low, high = rng.uniform(200, 1500), rng.uniform(300, 4000)
    pace = rng.uniform(0.3, 8)
    slide = (1 + np.sin(2 * np.pi * pace * time)) / 2 if rng.random() < 0.5 else (time * pace) % 1
    frequency = low + (high - low) * slide * rng.uniform(0, 1)
    gate = ((time * rng.uniform(0.3, 3)) % 1 < rng.uniform(0.2, 1)).astype(np.float64)
    return _unit(np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE) * gate)


def noise(length: int, rng: np.random.Generator) -> FloatArray:
    """Wind, crowds without words, clatter: coloured noise under a wandering level, with or without clicks."""
    points = max(2, int(length / SAMPLE_RATE * rng.uniform(0.3, 12)))
    level = np.interp(np.linspace(0, points - 1, length), np.arange(points), rng.uniform(0.02, 1, points) ** 2)
    out = _unit(coloured_noise(length, rng.uniform(0, 2), rng)) * level
    if rng.random() < 0.5:
        clicks = np.zeros(length)
        clicks[rng.integers(0, length, max(1, int(length / SAMPLE_RATE * rng.uniform(0.5, 10))))] = rng.uniform(0.3, 3)
        ring = np.exp(-np.arange(600) / rng.uniform(10, 200)) * rng.standard_normal(600)
        out = out + np.convolve(clicks, ring, "same")
    return _unit(out)


def _note(
    length: int, note: float, timbre: npt.NDArray[np.float64], decay: float, vibrato: float
) -> npt.NDArray[np.float64]:
    time = np.arange(length) / SAMPLE_RATE
    frequency = 440 * 2 ** ((note - 69 + vibrato * np.sin(2 * np.pi * 5.5 * time)) / 12)
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
    envelope = np.minimum(time / 0.01, 1) * np.exp(-decay * time) * np.minimum((length - np.arange(length)) / 240, 1)
    audible = [k for k in range(1, len(timbre) + 1) if k * frequency[0] < SAMPLE_RATE / 2]
    tone: npt.NDArray[np.float64] = envelope * np.sum([timbre[k - 1] * np.sin(k * phase) for k in audible], axis=0)
    return tone


def _unit(samples: npt.NDArray[np.floating[Any]]) -> FloatArray:
    unit: FloatArray = (samples / (np.sqrt(np.mean(np.square(samples))) + 1e-9)).astype(np.float32)
    return unit


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder for the audio and manifest.jsonl")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--languages", default="en,fr", help="of the speech between which they are placed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    made = make_sounds(arguments.out, arguments.hours, tuple(arguments.languages.split(",")), arguments.seed)
    add_to_manifest(arguments.out / "manifest.jsonl", made)
