"""The options of `slipstream transcribe` that describe the speech."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from slipstream.errors import ConfigError
from slipstream.hints import Hints, Keyword
from slipstream.language.identify import check_languages

if TYPE_CHECKING:
    from slipstream.model.config import STTConfig


def make_hints(
    keywords: Iterable[str], prompt: str, beam: int | None, texts: Iterable[Path], language: str, alternatives: int
) -> Hints:
    """Return the hints of `--keywords`, `--prompt`, `--beam`, `--lm`, `--language` and `--alternatives`.

    Raises `BadParameter` for invalid ones.
    """
    try:
        phrases = [keyword for given in keywords for keyword in _keywords(given)]
        text = "\n".join(_read(path, "--lm") for path in texts)
        languages = [code.strip() for code in language.split(",") if code.strip()]
        return Hints(
            keywords=phrases,
            prompt=prompt,
            languages=languages,
            beam=beam,
            lm=text,
            alternatives=alternatives,
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def check_hints(hints: Hints, config: STTConfig) -> None:
    """Raise `BadParameter` for a language that the model does not have."""
    try:
        check_languages(hints.languages, config.lm.languages)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--language") from error


def _keywords(given: str) -> list[Keyword]:
    is_file = os.path.isfile(given)  # False, too, for a list that is too long for a name
    if not is_file and given.endswith(".txt") and "," not in given:
        raise typer.BadParameter(f"{given}: no such file", param_hint="--keywords")
    lines = _read(Path(given), "--keywords").splitlines() if is_file else given.split(",")
    return [Keyword.parse(line) for line in lines if line.strip()]


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise typer.BadParameter(f"{path}: no such file", param_hint=option) from None
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: cannot read it as text: {error}", param_hint=option) from error
