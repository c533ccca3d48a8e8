"""Read configuration files and check them against pydantic models, with one style of error messages.

A message gives the place, the value and what is valid: `stt_config: delay_frames must be a whole number, 0 or more,
not 6.5`, or `unknown key 'num_head' in config.json; did you mean 'num_heads'?`.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticKnownError, core_schema

from slipstream.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
_Model = TypeVar("_Model", bound=BaseModel)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises `ConfigError` if there is no file or it holds anything else."""
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
    """Read a TOML file. Raises `ConfigError` if there is no file or it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


# ------------------------------------------------------------------------------------------------------------- schemas


class Section(BaseModel):
    """A table of a published file: strict types, and an unknown key is an error.

    A field's alias is its key in the file. Null is the same as an absent key. Keys in `ignored` may have any value.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        known = _keys(cls)
        return {k: v for k, v in raw.items() if k not in cls.ignored and (v is not None or k not in known)}


class LooseSection(Section):
    """A section in which unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore")


class Options(BaseModel):
    """A table of one of our own configuration files: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


@dataclass(frozen=True, slots=True)
class Must:
    """Annotation of a type: the words for what its values must be."""

    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        message = f"must be {self.words}"
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="must", custom_error_message=message, custom_error_context={}
        )


def only(value: float) -> AfterValidator:
    """Annotation of a number that must have this value: `Literal` does not allow floats."""

    def check(found: float) -> float:
        if found != value:
            raise PydanticKnownError("literal_error", {"expected": repr(value)})
        return found

    return AfterValidator(check)


Count = Annotated[int, Field(gt=0), Must("a whole number above 0")]
Natural = Annotated[int, Field(ge=0), Must("a whole number, 0 or more")]
Number = Annotated[float, Must("a number")]
PositiveNumber = Annotated[float, Field(gt=0), Must("a number above 0")]
NonNegativeNumber = Annotated[float, Field(ge=0), Must("a number, 0 or more")]


def parse(model: type[_Model], raw: Mapping[str, Any], where: str, prefix: str = "") -> _Model:
    """Check a table against a model.

    Args:
        model: A `Section`, or any strict pydantic model.
        raw: The table, of JSON's types.
        where: What to call the table in messages.
        prefix: Put before the keys of tables inside it, such as `modules.asr.`.

    Raises:
        ConfigError: A key is unknown or missing, or a value is wrong; the message describes every problem.
    """
    try:
        # Through JSON, so that lists become tuples, and models tables, although the types are strict.
        return model.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise ConfigError(describe(error, model, where, prefix)) from error


# ------------------------------------------------------------------------------------------------------------ messages


def describe(error: ValidationError, model: type[BaseModel], where: str, prefix: str = "") -> str:
    """Render every problem of a `ValidationError` with its place, its value and what is valid.

    Args:
        error: What `model` raised.
        model: The model of the whole file.
        where: What to call the top level of the file.
        prefix: Put before the keys of tables inside it.
    """
    missing: dict[str, list[str]] = {}
    others: list[str] = []
    for problem in error.errors(include_url=False):
        tables, key = problem["loc"][:-1], "".join(map(str, problem["loc"][-1:]))
        table = prefix + ".".join(map(str, tables)) if tables else where
        if problem["type"] == "missing":
            missing.setdefault(table, []).append(key)
        elif problem["type"] == "extra_forbidden":
            others.append(unknown_key(key, _keys(_model_at(model, tables)), table))
        else:
            others.append(_describe_value(problem, table, prefix))
    return "; ".join([f"{table} lacks {', '.join(keys)}" for table, keys in missing.items()] + others)


def unknown_key(key: str, known: Iterable[str], where: str) -> str:
    """The message for an unknown key: the nearest known key, or all of them."""
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
    return f"unknown key {key!r} in {where}{hint}"


def check_keys(raw: Mapping[str, Any], known: Any, where: str) -> None:
    """Raise `ConfigError` for the first key of `raw` that is not in `known`."""
    for key in raw:
        if key not in known:
            raise ConfigError(unknown_key(key, known, where))


def check_fixed(section: BaseModel, fixed: Mapping[str, Any], where: str, why: str = "") -> None:
    """Raise `ConfigError` for a field that is present with another value than its one supported value.

    `why` completes the message with the source of the supported value.
    """
    for name, value in fixed.items():
        if (found := getattr(section, name)) is not None and found != value:
            raise ConfigError(f"{where}.{name}={found!r} cannot be run here: only {value!r} is supported{why}")


_TYPE_WORDS = {
    "model_type": "a table",
    "dict_type": "a table",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
}


def _describe_value(problem: ErrorDetails, table: str, prefix: str) -> str:
    kind, value, loc = problem["type"], problem["input"], [str(part) for part in problem["loc"]]
    place = prefix + ".".join(loc) if loc else table
    if kind == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{place}: {message}"
    if kind in ("literal_error", "none_required"):
        expected = problem.get("ctx", {}).get("expected", "null")
        if " or " in expected:
            return f"{place}={value!r} is not supported: expected {expected}"
        return f"{place}={value!r} cannot be run here: only {expected} is supported"
    words = f"must be {_TYPE_WORDS[kind]}" if kind in _TYPE_WORDS else problem["msg"].replace("Input should", "must")
    if not loc or (len(loc) > 1 and loc[-1].isdecimal()):
        return f"{place} {words}, not {value!r}"
    return f"{table}: {loc[-1]} {words}, not {value!r}"


def _keys(model: type[BaseModel]) -> set[str]:
    """The keys of a model's table in a file."""
    ignored: frozenset[str] = getattr(model, "ignored", frozenset())
    return {field.alias or name for name, field in model.model_fields.items()} | ignored


def _model_at(model: type[BaseModel], tables: Iterable[int | str]) -> type[BaseModel]:
    """The model of a table inside the file of `model`."""
    for part in tables:
        for name, field in model.model_fields.items():
            if part == (field.alias or name):
                model = next(_models(field.annotation), model)
                break
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
