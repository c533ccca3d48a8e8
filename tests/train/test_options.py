"""The documents list every key of a run's file, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from slipstream.config import CodecConfig, LMConfig
from slipstream.train.options import CodecRun, DataOptions, LMRun

ELSEWHERE = (CodecConfig, LMConfig)
"""Tables whose keys the documents leave to the classes."""


def test_the_documents_list_every_key() -> None:
    keys = _keys(CodecRun) | _keys(LMRun)
    assert _documented() == keys


def _keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if tables and tables[0] not in ELSEWHERE:
            keys |= _keys(tables[0], f"{prefix}{name}.")
        else:
            keys.add(prefix + name)
    return keys


def _documented() -> set[str]:
    page = Path("docs/training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `.*\|$", page.partition("## The keys of a run's file")[2], flags=re.MULTILINE)
    keys: set[str] = set()
    for row in rows:
        first, _, meaning = row.strip("|").split("|")
        names = re.findall(r"`([^`]+)`", first)
        if names[0].endswith(".*"):
            names = [names[0].removesuffix("*") + name for name in re.findall(r"`([^`]+)`", meaning)]
        keys |= set(names)
    return keys


def test_cropping_what_is_not_drawn_is_an_error() -> None:
    with pytest.raises(ValidationError, match="crop names other, which weights do not draw from"):
        DataOptions(packs=(), weights={"own": 1.0}, crop={"own": 0.5, "other": 0.5})
