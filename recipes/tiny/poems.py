"""Read French speech: LibriVox's "Les Fleurs du mal", 16 volunteers, public domain.

    git clone https://github.com/heitorchang/fleursdumal_librivox data/fleursdumal
    python recipes/tiny/poems.py list data/fleursdumal data/poems.jsonl
    slipstream data align data/poems.jsonl --out data/aligned.jsonl --aligner whisper:data/whisper-base --least 0.4
    slipstream data cut data/aligned.jsonl --seconds 11 --out data/poems
    python recipes/tiny/poems.py pieces data/poems/manifest.jsonl data/poems/kept.jsonl

`list` writes one line per poem. The repository has the texts of 112 of its 152 recordings, from Project Gutenberg.
`pieces` leaves out the first and the last piece of each poem, since LibriVox's spoken preamble and closing words are
not in the text, and pieces that are short, or read too fast or too slowly for their text to be right.
"""

from __future__ import annotations

import argparse
import re
from itertools import groupby
from pathlib import Path

from slipstream.data.manifest import Recording, read_manifest, write_manifest

DATASET, LICENCE = "fleurs-du-mal", "public domain (LibriVox; poems by Baudelaire, 1857 to 1868)"
CHARACTERS_A_SECOND = (6, 22)
LEAST_SECONDS = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["list", "pieces"])
    parser.add_argument("source", type=Path, help="the repository, or the manifest of the pieces")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "list":
        write_manifest(arguments.out, poems(arguments.source))
    else:
        write_manifest(arguments.out, kept(list(read_manifest(arguments.source))))


def poems(repository: Path) -> list[Recording]:
    """One recording per poem that has a text: `audio/fleursdumal_NNN_*.mp3` and `N.txt`, which begins with a title."""
    found = []
    for audio in sorted((repository / "audio").glob("fleursdumal_*.mp3")):
        text = repository / f"{int(audio.name.split('_')[1])}.txt"
        if not text.exists():
            continue
        paragraphs = re.split(r"\n\s*\n", text.read_text(encoding="utf-8").strip())
        lines = " ".join(" ".join(paragraphs[1:]).replace("--", " ").split())
        found.append(Recording(audio, lines, lang="fr", dataset=DATASET, extra={"licence": LICENCE}))
    return found


def kept(pieces: list[Recording]) -> list[Recording]:
    """The pieces of each poem between the first and the last one, read at a usual pace."""
    low, high = CHARACTERS_A_SECOND
    poem_of = {piece: piece.audio.stem.rsplit("-", 1)[0] for piece in pieces}
    middles = [piece for _, some in groupby(pieces, key=poem_of.__getitem__) for piece in list(some)[1:-1]]
    timed = [(piece, piece.seconds or 0.0) for piece in middles]
    return [piece for piece, seconds in timed if seconds > LEAST_SECONDS and low < len(piece.text) / seconds < high]


if __name__ == "__main__":
    main()
