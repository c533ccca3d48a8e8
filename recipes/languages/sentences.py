"""Print the sentences of text files, one per line, each once and in random order: for a vocabulary, and to synthesise.

    python recipes/languages/sentences.py /usr/share/games/fortunes/de > texts/all.txt

A sentence has 3 to 20 words, of letters, commas, hyphens and apostrophes alone: synthesisers read figures and
abbreviations as other words than were written. Of a folder, all files are read. In files of fortunes, lines with
the author are left out.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path

LEAST_WORDS, MOST_WORDS = 3, 20
_AUTHOR = re.compile(r"\n\s*--.*", re.DOTALL)
_END = re.compile(r"(?<=[.!?…])\s+")
_PLAIN = re.compile(r"[^\W\d_](?:[^\W\d_]|[ ,'’]|-(?!-))*[^\W\d_][.!?]")  # noqa: RUF001


def main() -> None:
    texts = (path.read_text(encoding="utf-8") for path in _files(map(Path, sys.argv[1:])))
    print(*sentences(texts), sep="\n")


def sentences(texts: Iterable[str]) -> list[str]:
    """Return the sentences of texts, whose passages are separated by empty lines or lines of `%`."""
    found = set()
    for text in texts:
        for passage in re.split(r"\n\s*%?\s*\n", text):
            for sentence in _END.split(" ".join(_AUTHOR.sub("", passage).split())):
                fits = LEAST_WORDS <= len(sentence.split()) <= MOST_WORDS and sentence[:1].upper() == sentence[:1]
                if fits and _PLAIN.fullmatch(sentence):
                    found.add(sentence)
    ordered = sorted(found)
    random.Random(0).shuffle(ordered)
    return ordered


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        inside = sorted(file for file in path.iterdir() if file.suffix != ".dat") if path.is_dir() else [path]
        yield from inside


if __name__ == "__main__":
    main()
