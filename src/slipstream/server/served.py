"""The models that a server serves: which ones, with how many slots, and their engines."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from slipstream.backends import KVCache, Progress
from slipstream.bundle import ModelBundle
from slipstream.checkpoints.rust import RustConfig
from slipstream.dialects.models import Models
from slipstream.engine.engine import StepReport
from slipstream.engine.live import AnyEngine
from slipstream.engine.options import StreamFormat
from slipstream.errors import ConfigError
from slipstream.model.runner import Runner
from slipstream.schema import Count, Must, Section, parse, read_toml

DEFAULT_SLOTS = 8
STREAMS_PER_WORKER = 256
"""A third of what one core carries (docs/performance.md)."""
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)=(?P<model>.+)")


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model on a device. `name`: what requests call it."""

    name: str
    runner: Runner
    format: StreamFormat


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
) -> Models[AnyEngine]:
    """Load the models and start their engines, which `stack` closes.

    Args:
        accept_any: Whether an unknown name means the default model.
        max_waiting: Streams of one model that may wait for a slot.

    Raises:
        ConfigError: Two models have the same name, or as `ModelBundle.open`.
    """
    engines: dict[str, AnyEngine] = {}
    for one, name in zip(served, names_of(served), strict=True):
        bundle = _bundle(one)
        runner = _open(one, bundle, progress)
        engines[name] = stack.enter_context(bundle.engine(runner, max_waiting=max_waiting, observer=observer))
    return Models(engines, accept_any)


def names_of(served: Sequence[ServedModel]) -> list[str]:
    """Return what requests call the models. Raises `ConfigError` when two have the same name."""
    names = [one.name or _bundle(one).name for one in served]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"two models are called {twice.pop()!r}: name them apart with --model NAME=MODEL")
    return names


def open_model(one: ServedModel, name: str) -> OpenedModel:
    """Load a model for an engine in its own process. `name`: what requests call it."""
    bundle = _bundle(one)
    runner = _open(one, bundle)
    format = StreamFormat.of(
        runner,
        bundle.tokenizer,
        silence_prefix_seconds=bundle.silence_prefix_seconds,
        turns=bundle.turns,
        calibration=bundle.config.confidence,
    )
    return OpenedModel(name, runner, format)


def slots_of(one: ServedModel) -> int:
    """Return the number of slots of a model."""
    return one.slots or (one.model.slots if isinstance(one.model, RustConfig) else DEFAULT_SLOTS)


def default_workers(served: Sequence[ServedModel], devices: Sequence[str]) -> int:
    """Return how many worker processes suit these models on this machine; 0 for a server of one process.

    One process serves `STREAMS_PER_WORKER` streams easily. Beyond that there is a worker for each such number, as far
    as there are cores, of which the engine has one.
    """
    if sys.platform == "win32":
        return 0
    streams = sum(map(slots_of, served)) * max(1, len(devices))
    needed = -(-streams // STREAMS_PER_WORKER)
    return max(1, min(needed, _cores() - 1)) if devices or (needed > 1 and _cores() > 2) else 0


def on_devices(one: ServedModel, devices: Sequence[str]) -> list[ServedModel]:
    """Return the model on each device; on its own without any."""
    return [replace(one, device=device) for device in devices] or [one]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bundle(one: ServedModel) -> ModelBundle:
    return ModelBundle.of_rust(one.model) if isinstance(one.model, RustConfig) else ModelBundle.resolve(one.model)


def _open(one: ServedModel, bundle: ModelBundle, progress: Progress | None = None) -> Runner:
    return bundle.open(
        backend=one.backend, device=one.device, slots=slots_of(one), kv_cache=one.kv_cache, progress=progress
    )
