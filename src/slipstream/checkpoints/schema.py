"""Reading and checking configuration files. An unknown key is an error that names it and the nearest known one."""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from slipstream.errors import ConfigError
from slipstream.model.config import _Config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
_Model = TypeVar("_Model", bound="_Config")


# -------------------------------------------------------------------------------------------------------------- helpers


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises `ConfigError` when it is not there or not one."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return raw


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises `ConfigError` when it is not there or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def said(problem: ErrorDetails) -> str:
    """What a `ValidationError` says of one problem, without pydantic's prefix to a validator's own words."""
    return problem["msg"].removeprefix("Value error, ")


def check_keys(raw: Mapping[str, Any], known: Any, where: str) -> None:
    """Raise `ConfigError` for the first key of `raw` that is not in `known`, naming the nearest known one."""
    for key in raw:
        if key not in known:
            raise ConfigError(unknown_key(key, known, where))


def unknown_key(key: str, known: Iterable[str], where: str) -> str:
    """What is wrong with `key`: that it is not one of `known`, and which of those is nearest."""
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
    return f"unknown key {key!r} in {where}{hint}"


Kind = Literal["count", "natural", "positive", "not negative", "number", "text", "flag", "table", "list"]
"""What a published key must hold: checked before any arithmetic, so that the error names the key as published."""


def _is_kind(value: Any, kind: Kind) -> bool:
    if kind in ("count", "natural"):
        return type(value) is int and value >= (kind == "count")
    if kind in ("positive", "not negative", "number"):
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return kind == "number" or value > 0 or (kind == "not negative" and value == 0)
    return isinstance(value, {"text": str, "flag": bool, "table": Mapping, "list": list}[kind])


_KIND_WORDS: dict[Kind, str] = {
    "count": "a whole number above 0",
    "natural": "a whole number, 0 or more",
    "positive": "a number above 0",
    "not negative": "a number, 0 or more",
    "number": "a number",
    "text": "text",
    "flag": "true or false",
    "table": "a table",
    "list": "a list",
}


def checked(raw: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> dict[str, Any]:
    """The keys of `raw` that hold a value (null is as good as absent), each of the kind it must be."""
    for key, kind in kinds.items():
        if raw.get(key) is not None and not _is_kind(raw[key], kind):
            raise ConfigError(f"{where}: {key} must be {_KIND_WORDS[kind]}, not {raw[key]!r}")
    return {key: value for key, value in raw.items() if value is not None}


def _table(raw: Any, kinds: Mapping[str, Kind], where: str) -> dict[str, Any]:
    """A table of which every key is known and every value of its kind; an absent table is an empty one."""
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} must be a table, not {raw!r}")
    check_keys(raw, kinds, where)
    return checked(raw, kinds, where)


def _table_with_constants(
    raw: Any, kinds: Mapping[str, Kind], constants: Mapping[str, Any], where: str, unused: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A table that holds besides: keys whose values can only be these `constants`, and keys that change nothing."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} must be a table, not {raw!r}")
    check_keys(raw, {*kinds, *constants, *unused}, where)
    check_constants(raw, constants, where)
    return checked(raw, kinds, where)


def require(raw: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    missing = [key for key in keys if key not in raw]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")


def check_constants(raw: Mapping[str, Any], constants: Mapping[str, Any], where: str) -> None:
    for key, value in constants.items():
        if key in raw and raw[key] != value:
            raise ConfigError(f"{where}.{key}={raw[key]!r} cannot be run here: only {value!r} is supported")


def _validate(model: type[_Model], fields: dict[str, Any]) -> _Model:
    try:
        # Through JSON, so that lists become tuples while strings stay strings: strict, in JSON's own types.
        return model.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, e['loc']))}: {said(e)} (got {e['input']!r})" if e["loc"] else said(e)
            for e in error.errors()
        )
        raise ConfigError("; ".join(problems)) from error


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, values))
