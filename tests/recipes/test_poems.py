"""Recordings of poems: which have a text, and which of their pieces are kept."""

from __future__ import annotations

from pathlib import Path

from recipes.tiny.poems import kept, poems, tei_poems

from slipstream.data.manifest import Recording


def test_a_poem_with_a_text_is_listed_without_its_title(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    for number in ("002", "003"):
        (tmp_path / "audio" / f"fleursdumal_{number}_baudelaire_64kb.mp3").touch()
    (tmp_path / "2.txt").write_text(
        "\n  L'ALBATROS\n\n\n  Souvent, pour s'amuser,\n  --O douleur!\n\n  Le poète\n", encoding="utf-8"
    )
    (poem,) = poems(tmp_path)
    assert poem.text == "Souvent, pour s'amuser, O douleur! Le poète"
    assert (poem.lang, poem.dataset) == ("fr", "fleurs-du-mal")


TEI_FILE = """<TEI xmlns="http://www.tei-c.org/ns/1.0">
<teiHeader><titleStmt><title>LA G\u00c9ANTE</title></titleStmt></teiHeader>
<body><l>Du temps que la <app><rdg>Nature</rdg><rdg>nature</rdg></app><note>1857</note></l>
<l>en sa <choice><sic>verv</sic><corr>verve</corr></choice> puissante</l><l/></body></TEI>"""


def test_a_poem_without_a_text_is_found_in_tei_by_its_title(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    names = [f"fleursdumal_{number}_baudelaire_64kb.mp3" for number in ("020", "021")]
    for name in names:
        (tmp_path / "audio" / name).touch()
    links = zip(names, ("La g&eacute;ante (1857)", "Le masque"), strict=True)
    page = "\n".join(f'<a href="audio/{name}" class="chapter-name">{title}</a>' for name, title in links)
    (tmp_path / "LibriVox_index.html").write_text(page, encoding="utf-8")
    (tmp_path / "tei").mkdir()
    (tmp_path / "tei" / "1.xml").write_text(TEI_FILE, encoding="utf-8")
    (tmp_path / "tei" / "2.xml").write_text("<TEI><l>not closed</TEI>", encoding="utf-8")
    texts = tei_poems(tmp_path / "tei")
    assert [(poem.audio.name, poem.text) for poem in poems(tmp_path, texts)] == [
        (names[0], "Du temps que la Nature en sa verve puissante")
    ]
    assert poems(tmp_path) == []


def test_pieces_at_the_ends_short_ones_and_hasty_ones_are_left_out() -> None:
    def piece(poem: str, number: int, seconds: float = 3.0, characters: int = 30) -> Recording:
        return Recording(Path(f"{poem}-000000-{number:03}.wav"), "a" * characters, seconds=seconds)

    first = [piece("one", number) for number in range(4)]
    second = [piece("two", 0), piece("two", 1, seconds=1.4), piece("two", 2, characters=90), piece("two", 3)]
    second += [piece("two", 4, characters=15), piece("two", 5)]
    assert kept(first + second) == [first[1], first[2], second[3]]
