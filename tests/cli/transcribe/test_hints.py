"""The options of the command that describe the speech."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from tests.models import stt_config

from slipstream.cli.transcribe.hints import check_hints, make_hints
from slipstream.hints import Hints, Keyword


def hints(*keywords: str, language: str = "") -> Hints:
    return make_hints(keywords, "", 1, [], language, 1)


def test_keywords_are_a_list_of_any_length_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names"
    file.write_bytes("\ufeffNgaio Marsh\r\nPoirot:2\n".encode())
    assert hints(str(file)).phrases == (Keyword("Ngaio Marsh"), Keyword("Poirot", 2.0))
    names = [f"name {number}" for number in range(100)]  # longer than the name of a file may be
    assert hints(", ".join(names)).keywords == tuple(map(Keyword, names))


def test_a_file_of_keywords_that_is_missing_is_no_keyword(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"names\.txt: no such file"):
        hints(str(tmp_path / "names.txt"))
    with pytest.raises(typer.BadParameter, match=r"notes\.txt: no such file$"):
        make_hints([], "", 2, [tmp_path / "notes.txt"], "", 1)


def test_a_language_that_the_model_cannot_be_set_to_is_refused() -> None:
    bilingual = stt_config(codec="whisper", decoder=True, languages=("en", "fr"))
    for language in ("", "auto", "fr-CA", "en,fr"):
        check_hints(hints(language=language), bilingual)
    with pytest.raises(typer.BadParameter, match=r"language 'xx': expected one of this model \(en, fr, auto\)"):
        check_hints(hints(language="xx"), bilingual)
    check_hints(hints(language="xx"), stt_config())


def test_a_language_is_a_code() -> None:
    assert hints(language="en, fr-CA").languages == ("en", "fr-CA")
    with pytest.raises(typer.BadParameter, match="language 'english': expected an ISO 639-1 code"):
        hints(language="english")
