"""A manifest of English recordings by many readers: Common Voice corpus 1, and LibriSpeech.

    git clone https://github.com/GreenTea749/ASR-AI-microservice-Elastic-search-AI-application data/common-voice-1
    git clone https://github.com/lalking52/compressor_project data/test-clean
    git clone https://github.com/zhangrui0712/Voice-Age data/train-clean-5
    python recipes/tiny/readers.py data/readers.jsonl --common-voice data/common-voice-1/cv-valid-dev/cv-valid-dev.csv \
        --librispeech data/test-clean/LibriSpeech data/train-clean-5/LibriSpeech

Clips shorter than 1.2 s or longer than 15 s are left out. LibriSpeech has at most 18 clips per reader; Common Voice
names no readers. The texts become sentences, with a capital first and a full stop last.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from slipstream.audio import probe
from slipstream.data.manifest import Recording, write_manifest
from slipstream.data.texts import as_sentence

SHORTEST, LONGEST = 1.2, 15.0
MOST_CLIPS = 18
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--common-voice", type=Path, nargs="*", default=[], help="tables of corpus 1 (cv-*.csv)")
    parser.add_argument("--librispeech", type=Path, nargs="*", default=[], help="folders of LibriSpeech")
    arguments = parser.parse_args()
    clips = [clip for table in arguments.common_voice for clip in usable(common_voice(table))]
    clips += [clip for folder in arguments.librispeech for clip in few_each(usable(librispeech(folder)))]
    write_manifest(arguments.out, clips)


def usable(clips: Iterable[Recording]) -> Iterator[Recording]:
    """The clips that are neither too short nor too long."""
    return (clip for clip in clips if SHORTEST < (probe(clip.audio).duration or 0) < LONGEST)


def common_voice(table: Path) -> Iterator[Recording]:
    """The clips of a table of corpus 1, whose `filename` is relative to the folder above the table's."""
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = as_sentence(row["text"].upper())
            yield Recording(table.parent.parent / row["filename"], text, lang="en", dataset="common-voice-1")


def librispeech(folder: Path) -> Iterator[Recording]:
    """The clips of all parts of LibriSpeech in a folder, by `READER-CHAPTER.trans.txt`."""
    for table in sorted(folder.glob("**/*.trans.txt")):
        for line in table.read_text(encoding="utf-8").splitlines():
            name, text = line.split(" ", 1)
            audio, reader = table.parent / f"{name}.flac", name.split("-")[0]
            yield Recording(audio, as_sentence(text), speaker=reader, lang="en", dataset="librispeech-more")


def few_each(clips: Iterable[Recording]) -> list[Recording]:
    """At most `MOST_CLIPS` clips of each reader, drawn at random."""
    kept: list[Recording] = []
    read: Counter[str] = Counter()
    shuffled = list(clips)
    random.Random(SEED).shuffle(shuffled)
    for clip in shuffled:
        if read[clip.speaker] < MOST_CLIPS:
            kept.append(clip)
            read[clip.speaker] += 1
    return kept


if __name__ == "__main__":
    main()
