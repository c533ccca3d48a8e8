"""Read French speech: LibriVox's "Les Fleurs du mal", 16 volunteers, public domain.

    git clone https://github.com/heitorchang/fleursdumal_librivox data/fleursdumal
    git clone https://github.com/CliffordAnderson/corpus-baudelaire data/corpus-baudelaire
    python recipes/tiny/poems.py list data/fleursdumal data/poems.jsonl --tei data/corpus-baudelaire/fleurs-du-mal
    slipstream data align data/poems.jsonl --out data/aligned.jsonl --aligner whisper:data/whisper-base --least 0.4
    slipstream data cut data/aligned.jsonl --seconds 11 --out data/poems
    python recipes/tiny/poems.py pieces data/poems/manifest.jsonl data/poems/kept.jsonl

`list` writes one line per poem. The first repository has the texts of 112 of its 152 recordings, from Project
Gutenberg. The TEI files of the second one have most of the others; LibriVox's page has the titles to find them by.
`pieces` leaves out the first and the last piece of each poem, since LibriVox's spoken preamble and closing words are
not in the text, and pieces that are short, or read too fast or too slowly for their text to be right.
"""

from __future__ import annotations

import argparse
import difflib
import html
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from slipstream.data.manifest import Recording, read_manifest, write_manifest

DATASET, LICENCE = "fleurs-du-mal", "public domain (LibriVox; poems by Baudelaire, 1857 to 1868)"
CHARACTERS_A_SECOND = (6, 22)
LEAST_SECONDS = 1.5

LINK = re.compile(r'href="audio/([^"]+)" class="chapter-name">([^<]+)<')
"""A poem on LibriVox's page: its file and its title."""

TEI = "{http://www.tei-c.org/ns/1.0}"
READINGS = ("lem", "corr", "reg", "orig", "sic", "rdg")
"""Elements of a variant or a correction, from the reading that is preferred to the last one."""

SAME_TITLE = 0.75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["list", "pieces"])
    parser.add_argument("source", type=Path, help="the repository, or the manifest of the pieces")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tei", type=Path, help="TEI files of poems, for recordings without a text (list)")
    arguments = parser.parse_args()
    if arguments.command == "list":
        write_manifest(arguments.out, poems(arguments.source, tei_poems(arguments.tei) if arguments.tei else {}))
    else:
        write_manifest(arguments.out, kept(list(read_manifest(arguments.source))))


def poems(repository: Path, others: dict[str, str] | None = None) -> list[Recording]:
    """One recording per poem that has a text: `audio/fleursdumal_NNN_*.mp3` and `N.txt`, which begins with a title.

    Args:
        repository: The folder with `audio`, the texts, and `LibriVox_index.html` for the titles.
        others: Texts by the titles of `plain`, for poems without a file of text.
    """
    found = []
    titles = _titles(repository) if others else {}
    for audio in sorted((repository / "audio").glob("fleursdumal_*.mp3")):
        text = repository / f"{int(audio.name.split('_')[1])}.txt"
        if text.exists():
            paragraphs = re.split(r"\n\s*\n", text.read_text(encoding="utf-8").strip())
            verses = " ".join(paragraphs[1:])
        elif others and (same := difflib.get_close_matches(titles.get(audio.name, ""), others, 1, SAME_TITLE)):
            verses = others[same[0]]
        else:
            continue
        lines = " ".join(verses.replace("--", " ").replace("—", " ").split())
        found.append(Recording(audio, lines, lang="fr", dataset=DATASET, extra={"licence": LICENCE}))
    return found


def _titles(repository: Path) -> dict[str, str]:
    """The title of each file of audio, as `plain` writes it, without the words in brackets after it."""
    page = html.unescape((repository / "LibriVox_index.html").read_text(encoding="utf-8"))
    return {name: plain(title.split("(")[0]) for name, title in LINK.findall(page)}


def tei_poems(folder: Path) -> dict[str, str]:
    """The verses of each TEI file by its title. Files that are not well-formed are left out."""
    found = {}
    for path in sorted(folder.glob("*.xml")):
        try:
            root = ET.parse(path).getroot()
        except ET.ParseError:
            continue
        title, body = root.find(f".//{TEI}titleStmt/{TEI}title"), root.find(f".//{TEI}body")
        if title is not None and body is not None:
            verses = (" ".join("".join(_reading(line)).split()) for line in body.iter(f"{TEI}l"))
            found[plain("".join(title.itertext()))] = " ".join(filter(None, verses))
    return found


def _reading(element: ET.Element) -> Iterator[str]:
    """The text of an element: of each variant one reading, and no notes."""
    if element.tag in {f"{TEI}app", f"{TEI}choice"}:
        readings = {part.tag: part for part in reversed(element)}
        chosen = next((readings[tag] for name in READINGS if (tag := TEI + name) in readings), None)
        if chosen is not None:
            yield from _reading(chosen)
    elif isinstance(element.tag, str) and element.tag != f"{TEI}note":
        yield element.text or ""
        for part in element:
            yield from _reading(part)
            yield part.tail or ""


def plain(title: str) -> str:
    """Lower case, without accents and punctuation."""
    letters = unicodedata.normalize("NFD", title.lower()).encode("ascii", "ignore").decode()
    return " ".join(re.findall("[a-z]+", letters))


def kept(pieces: list[Recording]) -> list[Recording]:
    """The pieces of each poem between the first and the last one, read at a usual pace."""
    low, high = CHARACTERS_A_SECOND
    poem_of = {piece: piece.audio.stem.rsplit("-", 1)[0] for piece in pieces}
    middles = [piece for _, some in groupby(pieces, key=poem_of.__getitem__) for piece in list(some)[1:-1]]
    timed = [(piece, piece.seconds or 0.0) for piece in middles]
    return [piece for piece, seconds in timed if seconds > LEAST_SECONDS and low < len(piece.text) / seconds < high]


if __name__ == "__main__":
    main()
