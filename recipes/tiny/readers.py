"""A manifest of recordings by many readers: Common Voice, and LibriSpeech.

    git clone https://github.com/GreenTea749/ASR-AI-microservice-Elastic-search-AI-application data/common-voice-1
    git clone https://github.com/lalking52/compressor_project data/test-clean
    git clone https://github.com/zhangrui0712/Voice-Age data/train-clean-5
    python recipes/tiny/readers.py data/readers.jsonl --common-voice data/common-voice-1/cv-valid-dev/cv-valid-dev.csv \
        --librispeech data/test-clean/LibriSpeech data/train-clean-5/LibriSpeech
    git clone https://github.com/korliu/whisper data/common-voice-13
    git clone https://github.com/shubhra-cv/17 data/common-voice-17
    git -C data/common-voice-17 checkout 9d214b6
    python recipes/tiny/readers.py data/voices.jsonl --held data/held.jsonl --releases data/common-voice-13/dataset \
        data/common-voice-17/cv-corpus-17.0-delta-2024-03-15-fr

Clips shorter than 1.2 s or longer than 15 s are left out. LibriSpeech has at most 18 clips per reader, a release of
Common Voice 30; corpus 1 names no readers. English texts become sentences, with a capital first and a full stop last.
One clip of each of some readers who read least is held out for tests, and the others of these readers are left out.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from slipstream.audio import probe
from slipstream.data.manifest import Recording, write_manifest
from slipstream.data.texts import as_sentence, without_quotes

SHORTEST, LONGEST = 1.2, 15.0
MOST_CLIPS = 18
MOST_OF_RELEASE = 30
HELD_READERS = {"fr": 100, "en": 60}
MOST_CLIPS_HELD = 8
"""A reader who is held out has at most this number of clips."""
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--common-voice", type=Path, nargs="*", default=[], help="tables of corpus 1 (cv-*.csv)")
    parser.add_argument("--librispeech", type=Path, nargs="*", default=[], help="folders of LibriSpeech")
    parser.add_argument(
        "--releases", type=Path, nargs="*", default=[], help="folders with `validated.tsv` and a folder of clips"
    )
    parser.add_argument("--held", type=Path, help="manifest of held-out readers of the releases")
    arguments = parser.parse_args()
    clips = [clip for table in arguments.common_voice for clip in usable(common_voice(table))]
    clips += [clip for folder in arguments.librispeech for clip in few_each(usable(librispeech(folder)), MOST_CLIPS)]
    voices = [clip for folder in arguments.releases for clip in usable(release(folder))]
    if arguments.held:
        tests, voices = held_out(voices)
        write_manifest(arguments.held, tests)
    write_manifest(arguments.out, clips + few_each(voices, MOST_OF_RELEASE))


def usable(clips: Iterable[Recording]) -> Iterator[Recording]:
    """The clips that are neither too short nor too long."""
    return (clip for clip in clips if SHORTEST < (probe(clip.audio).duration or 0) < LONGEST)


def common_voice(table: Path) -> Iterator[Recording]:
    """The clips of a table of corpus 1. Its `filename` starts with the folder of the clips.

    That folder is next to the table, or has the table in it.
    """
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            audio = table.parent / row["filename"]
            if not audio.exists():
                audio = table.parent.parent / row["filename"]
            yield Recording(audio, as_sentence(row["text"].upper()), lang="en", dataset="common-voice-1")


def librispeech(folder: Path) -> Iterator[Recording]:
    """The clips of all parts of LibriSpeech in a folder, by `READER-CHAPTER.trans.txt`."""
    for table in sorted(folder.glob("**/*.trans.txt")):
        for line in table.read_text(encoding="utf-8").splitlines():
            name, text = line.split(" ", 1)
            audio, reader = table.parent / f"{name}.flac", name.split("-")[0]
            yield Recording(audio, as_sentence(text), speaker=reader, lang="en", dataset="librispeech-more")


def release(folder: Path) -> Iterator[Recording]:
    """The validated clips of a release of Common Voice, or of its additions ("delta")."""
    clips = next(path for path in (folder / "clips", folder / "validated_clips") if path.is_dir())
    with (folder / "validated.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            lang, audio, text = row["locale"], clips / row["path"], without_quotes(row["sentence"])
            if audio.exists():
                text = as_sentence(text) if lang == "en" else text
                yield Recording(audio, text, speaker=row["client_id"], lang=lang, dataset=f"common-voice-{lang}")


def held_out(clips: Iterable[Recording]) -> tuple[list[Recording], list[Recording]]:
    """One clip of each of `HELD_READERS` readers who have few clips, and the clips of all other readers."""
    by_reader = defaultdict(list)
    for clip in clips:
        by_reader[clip.lang, clip.speaker].append(clip)
    readers = sorted(by_reader)
    rng = random.Random(SEED)
    rng.shuffle(readers)
    held: set[tuple[str, str]] = set()
    for language, count in HELD_READERS.items():
        few = [reader for reader in readers if reader[0] == language and len(by_reader[reader]) <= MOST_CLIPS_HELD]
        held.update(few[:count])
    tests = [rng.choice(by_reader[reader]) for reader in readers if reader in held]
    return tests, [clip for reader in readers if reader not in held for clip in by_reader[reader]]


def few_each(clips: Iterable[Recording], most: int) -> list[Recording]:
    """At most `most` clips of each reader, drawn at random."""
    kept: list[Recording] = []
    read: Counter[str] = Counter()
    shuffled = list(clips)
    random.Random(SEED).shuffle(shuffled)
    for clip in shuffled:
        if read[clip.speaker] < most:
            kept.append(clip)
            read[clip.speaker] += 1
    return kept


if __name__ == "__main__":
    main()
