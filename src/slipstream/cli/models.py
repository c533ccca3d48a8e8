"""`slipstream models`: models that are built in, cached, or known by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slipstream.cli.console import notice
from slipstream.cli.options import DEFAULT_MODEL
from slipstream.cli.progress import counting_bar

if TYPE_CHECKING:
    from slipstream.bundle import ModelBundle
    from slipstream.model.config import STTConfig
    from slipstream.transcriber import Transcriber

PRODUCTION_MODEL = "kyutai/stt-1b-en_fr-candle"
_LANGUAGES = {
    "tiny": ("en", "fr"),
    "kyutai/stt-1b-en_fr": ("en", "fr"),
    "kyutai/stt-1b-en_fr-candle": ("en", "fr"),
    "kyutai/stt-2.6b-en": ("en",),
    "kyutai/tts-1.6b-en_fr": ("en", "fr"),
    "kyutai/tts-0.75b-en-public": ("en",),
}


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model known by name, and where its files are."""

    name: str
    config: STTConfig
    place: Literal["built in", "cached", "on the hub"]

    @property
    def languages(self) -> str:
        return ", ".join(known_languages(self.name)) or "?"

    @property
    def parameters(self) -> tuple[int, int]:
        """Number of parameters of the LM and of the codec."""
        from slipstream.model.names import codec_shapes, lm_shapes

        lm, codec = lm_shapes(self.config.lm), codec_shapes(self.config.codec)
        return sum(map(math.prod, lm.values())), sum(map(math.prod, codec.values()))

    @property
    def download_gigabytes(self) -> float:
        """Size of the files of a published model: the LM in bfloat16, the codec in float32."""
        lm, codec = self.parameters
        return (2 * lm + 4 * codec) / 1e9


def known_languages(name: str) -> tuple[str, ...]:
    """Return the languages of a model known by name; none for others."""
    return _LANGUAGES.get(name, ())


def offered_languages(models: Iterable[object]) -> tuple[str, ...]:
    """Return the languages of all models, each once; `en` for a model that is not known by name."""
    languages = [known_languages(model) if isinstance(model, str) else () for model in models]
    return tuple(dict.fromkeys(language for of_model in languages for language in of_model or ("en",)))


def models() -> None:
    """List the models that are built in, cached on this machine, or known by name."""
    from rich.console import Console
    from rich.table import Table

    from slipstream.checkpoints.presets import SPEECH_MODELS

    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for title in ("languages", "delay", "pause\nheads", "size", "where"):
        table.add_column(title)
    for model in known_models():
        table.add_row(
            model.name,
            model.languages,
            f"{model.config.delay_seconds:g} s",
            str(model.config.lm.pause_heads or "none"),
            f"{sum(model.parameters) / 1e6:.0f} M",
            model.place if model.place != "on the hub" else f"{model.download_gigabytes:.1f} GB download",
        )
    console = Console()
    console.print(table)
    console.print("\n--model also accepts any other Hugging Face Hub repository, or a folder.")
    console.print(f"Text to speech (`say`, `serve --speech`): {', '.join(SPEECH_MODELS)}", soft_wrap=True)


def open_transcriber(model: str | ModelBundle, **options: Any) -> Transcriber:
    """Load a model for a command; see `slipstream.load`. With the built-in model, a notice names a larger one."""
    if (model if isinstance(model, str) else model.name) == DEFAULT_MODEL:
        notice(production_hint())

    import slipstream

    with counting_bar("Converting") as progress:
        return slipstream.load(model, progress=progress, **options)


def production_hint() -> str:
    """Return a line that names the recommended model and its download size."""
    model = next(model for model in _published() if model.name == PRODUCTION_MODEL)
    size = "in your cache" if model.place == "cached" else f"about {model.download_gigabytes:.1f} GB to download"
    what = "a small built-in model with many recognition errors"
    return f"{DEFAULT_MODEL} is {what}; for better results: --model {model.name} ({size})"


def known_models() -> Iterator[KnownModel]:
    """Yield the built-in models, the published ones, and other compatible models in the Hub's cache."""
    from slipstream.checkpoints.sources import built_in_models, resolve

    for name in built_in_models():
        yield KnownModel(name, resolve(name).config, "built in")
    yield from _published()
    yield from _others_cached()


def _published() -> Iterator[KnownModel]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from slipstream.checkpoints.presets import PRESETS

    for name, config in PRESETS.items():
        snapshots = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
        cached = any(snapshots.glob("*/config.json"))
        yield KnownModel(name, config, "cached" if cached else "on the hub")


def _others_cached() -> Iterator[KnownModel]:
    """Yield other repositories in the Hub's cache that have a compatible configuration."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    from slipstream.checkpoints.presets import PRESETS

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        configs = [_read_config(revision.snapshot_path) for revision in repository.revisions]
        if repository.repo_id not in PRESETS and (config := next(filter(None, configs), None)):
            yield KnownModel(repository.repo_id, config, "cached")


def _read_config(snapshot: Path) -> STTConfig | None:
    from slipstream.checkpoints.kyutai import parse_kyutai
    from slipstream.errors import ConfigError
    from slipstream.schema import read_json

    try:
        return parse_kyutai(read_json(snapshot / "config.json"))
    except ConfigError:
        return None  # another kind of model, or none
