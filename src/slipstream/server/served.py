"""The models that a server serves: which ones, with how many slots, and their engines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from slipstream.backends import KVCache, Progress
from slipstream.bundle import ModelBundle
from slipstream.checkpoints.rust import RustConfig
from slipstream.engine.engine import Engine, StepReport
from slipstream.errors import ConfigError
from slipstream.schema import Count, Must, Section, parse, read_toml
from slipstream.server.models import Models

DEFAULT_SLOTS = 8
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)=(?P<model>.+)")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of a server. `model`: what `ModelBundle.resolve` takes, or the configuration of a Rust server.

    `name`: what requests call it; empty for the model's own name.
    """

    model: str | RustConfig
    name: str = ""
    slots: int | None = None
    backend: str = "auto"
    device: str = "auto"
    kv_cache: KVCache = "auto"

    @classmethod
    def parse(cls, text: str, slots: int | None, backend: str, device: str, kv_cache: KVCache = "auto") -> ServedModel:
        """Read `MODEL` or `NAME=MODEL`."""
        named = _NAMED.fullmatch(text)
        model, name = (named["model"], named["name"]) if named else (text, "")
        return cls(model, name, slots, backend, device, kv_cache)


class _Table(Section):
    model: str
    slots: Count = DEFAULT_SLOTS
    backend: str = "auto"
    device: str = "auto"
    kv_cache: Annotated[KVCache, Must("auto or int8")] = "auto"


def read_models(path: Path) -> list[ServedModel]:
    """Read a file of models: a section `[NAME]` each, with `model`, and optionally the other fields of `ServedModel`.

    Raises `ConfigError` for a file without models, and for an unknown key or an invalid value.
    """
    served = []
    for name, table in read_toml(path).items():
        if not isinstance(table, dict):
            raise ConfigError(f'{path}: {name}: expected a section [NAME] with model = "..."')
        section = parse(_Table, table, f"{path}: [{name}]")
        served.append(
            ServedModel(section.model, name, section.slots, section.backend, section.device, section.kv_cache)
        )
    if not served:
        raise ConfigError(f'{path}: no models: expected a section [NAME] with model = "..." for each')
    return served


def open_models(
    served: Sequence[ServedModel],
    stack: ExitStack,
    *,
    accept_any: bool = False,
    max_waiting: int = 64,
    observer: Callable[[StepReport], None] | None = None,
    progress: Progress | None = None,
) -> Models[Engine]:
    """Load the models and start their engines, which `stack` closes.

    Args:
        accept_any: Whether an unknown name means the default model.
        max_waiting: Streams of one model that may wait for a slot.

    Raises:
        ConfigError: Two models have the same name, or as `ModelBundle.open`.
    """
    engines: dict[str, Engine] = {}
    bundles = [
        ModelBundle.of_rust(one.model) if isinstance(one.model, RustConfig) else ModelBundle.resolve(one.model)
        for one in served
    ]
    names = [one.name or bundle.name for one, bundle in zip(served, bundles, strict=True)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"two models are called {twice.pop()!r}: name them apart with --model NAME=MODEL")
    for one, name, bundle in zip(served, names, bundles, strict=True):
        slots = one.slots or (one.model.slots if isinstance(one.model, RustConfig) else DEFAULT_SLOTS)
        runner = bundle.open(
            backend=one.backend, device=one.device, slots=slots, kv_cache=one.kv_cache, progress=progress
        )
        engines[name] = stack.enter_context(bundle.engine(runner, max_waiting=max_waiting, observer=observer))
    return Models(engines, accept_any)
