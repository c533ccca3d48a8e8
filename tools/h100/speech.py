"""Speech for a GPU machine without a network: carried as Opus, and synthesised there.

    python -m tools.h100.speech FOLDER PACK... [--texts FILE...] [--megabytes 30]

Writes packs of samples as Opus packs of 12 kbit/s, and texts to synthesise, into FOLDER/speech. `unpack` decodes them
on the other machine with soundfile, which is a thirtieth of FFmpeg's size.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from slipstream.data.augment import resample_speech
from slipstream.data.packs import Clip, Pack, PackKind, write_pack
from slipstream.errors import SlipstreamError

BIT_RATE = 12_000
RATE = 24_000
SAMPLES = PackKind("samples", 1, float(RATE), (0.0,))
TEXTS = "texts.txt"

Item = tuple[npt.NDArray[np.int16], Clip]


# ------------------------------------------------------------------------------------------------------------ packing


def carry(packs: Sequence[Path], texts: Sequence[Path], folder: Path, most_bytes: float) -> None:
    """Write each pack's share of `most_bytes`, from its start, and the texts."""
    for number, path in enumerate(packs):
        pack, folder_of = Pack(path), folder / f"{number}"
        write_pack(folder_of, pack.kind, _start(pack, most_bytes / len(packs)), opus=True, bit_rate=BIT_RATE)
        taken = Pack(folder_of).clips
        hours = sum(clip.length for clip in taken) / pack.kind.rate / 3600
        print(f"{path}: {hours:.2f} of {sum(clip.length for clip in pack.clips) / pack.kind.rate / 3600:.2f} h")
    if texts:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TEXTS).write_text("".join(path.read_text(encoding="utf-8") for path in texts), encoding="utf-8")


def _start(pack: Pack, most_bytes: float) -> Iterator[tuple[npt.NDArray[Any], Clip]]:
    size = 0.0
    for clip in pack.clips:
        size += clip.length / pack.kind.rate * BIT_RATE / 8 + 600  # and the headers of an Ogg file
        if size > most_bytes:
            return
        yield pack.rows(clip), clip


# ---------------------------------------------------------------------------------------------------------- unpacking


def unpack(source: Path, target: Path, workers: int) -> float:
    """Decode an Opus pack into one of samples, by several processes. Returns its seconds."""
    pack = Pack(source)
    with get_context("fork").Pool(workers) as pool:
        items = pool.imap(partial(_decoded, source, pack.kind.rate), pack.clips, chunksize=8)
        write_pack(target, pack.kind, items)
    return sum(clip.length for clip in pack.clips) / pack.kind.rate


def _decoded(source: Path, rate: float, clip: Clip) -> Item:
    import soundfile

    with (source / "rows.bin").open("rb") as file:
        file.seek(clip.offset)
        samples, found = soundfile.read(io.BytesIO(file.read(clip.size)), dtype="float32")
    if found != rate:
        samples = soxr.resample(samples, found, rate)
    rows = np.zeros((clip.length, 1), np.int16)
    whole = np.round(np.clip(samples[: clip.length], -1, 1) * 32767)
    rows[: len(whole), 0] = whole
    return rows, clip


# ---------------------------------------------------------------------------------------------------------- synthesis


def synthesise(texts: Sequence[str], language: str, target: Path, workers: int) -> float:
    """Speak texts by espeak-ng in several processes, into a pack of samples. Returns its seconds."""
    with get_context("fork").Pool(workers) as pool:
        items = pool.imap(partial(_spoken, language), enumerate(texts), chunksize=8)
        write_pack(target, SAMPLES, (item for item in items if item is not None))
    return sum(clip.length for clip in Pack(target).clips) / RATE


def _spoken(language: str, numbered: tuple[int, str]) -> Item | None:
    import random

    from slipstream.data.espeak import Espeak
    from slipstream.data.synthesis import synthesise as speak

    number, text = numbered
    engine, rng = Espeak(language), np.random.default_rng(number)
    try:
        spoken = speak(text, engine, engine.draw(language, 1.0, rng, random.Random(number)))
    except SlipstreamError:  # a text that it cannot speak
        return None
    samples = resample_speech(spoken.samples, spoken.sample_rate, 1.0, RATE)
    rows = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)[:, None]
    words = tuple((word.text, word.start, word.end) for word in spoken.words)
    phones = tuple((phone.name, phone.start) for phone in spoken.phones)
    return rows, Clip(0, 0, text, language, f"espeak-ng-{language}", "", words, phones)


def noise(count: int, target: Path) -> float:
    """In the place of speech where there is none: the time of a step does not depend on the words."""
    rng, words = np.random.default_rng(0), ("the", "word", "time", "people")

    def items() -> Iterator[Item]:
        for _ in range(count):
            seconds = float(rng.uniform(2, 8))
            timed = tuple((words[i % 4], float(at), at + 0.3) for i, at in enumerate(np.arange(0, seconds - 0.3, 0.33)))
            clip = Clip(0, 0, " ".join(word for word, _, _ in timed), "en", "noise", "", timed, (("a", 0.0),))
            yield (rng.standard_normal((round(seconds * RATE), 1)) * 2000).astype(np.int16), clip

    write_pack(target, SAMPLES, items())
    return sum(clip.length for clip in Pack(target).clips) / RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "packs", type=Path, nargs="*", help="packs of samples, such as `slipstream data pack --samples`"
    )
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="sentences to synthesise, one a line")
    parser.add_argument("--megabytes", type=float, default=30.0, help="of Opus, shared by the packs")
    options = parser.parse_args()
    carry(options.packs, options.texts, options.folder / "speech", options.megabytes * 1e6)


if __name__ == "__main__":
    main()
