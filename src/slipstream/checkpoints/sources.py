"""Find the files of a checkpoint: a folder, a repository on the Hugging Face Hub, a built-in model, single files."""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict

from slipstream.checkpoints.kyutai import parse_kyutai
from slipstream.checkpoints.pause_heads import with_pause_heads_of
from slipstream.checkpoints.presets import PRESETS, SPEECH_MODELS
from slipstream.checkpoints.transformers import EXTRAS_FILE, MODEL_FILE, is_transformers, parse_config
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import STTConfig
from slipstream.schema import read_json

BUILT_IN = Path(__file__).parent.parent / "models"
"""The folder of the built-in models, which has a folder for each."""

LORA_SCALING = 2.0
"""The default of `lora_scaling` in Kyutai's loader."""

logger = logging.getLogger(__name__)

Ref = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Sources:
    """A checkpoint's configuration, and its files on this machine. The codec can be in the LM's file."""

    config: STTConfig
    lm: tuple[Path, ...]
    codec: tuple[Path, ...]
    tokenizer: Path
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter of the LM: its file, and the factor on what it adds to the weights."""

    path: Path
    scaling: float


class Origin(TypedDict, total=False):
    """The keyword arguments of `resolve`, for functions that pass them on."""

    revision: str | None
    config: Ref | None
    codec_config: Ref | None
    lm: Ref | None
    codec: Ref | None
    tokenizer: Ref | None


def resolve(
    ref: Ref,
    *,
    revision: str | None = None,
    config: Ref | None = None,
    codec_config: Ref | None = None,
    lm: Ref | None = None,
    codec: Ref | None = None,
    tokenizer: Ref | None = None,
) -> Sources:
    """Find every file of a checkpoint; download what the hub's cache does not have.

    Args:
        ref: A folder, a repository id such as `kyutai/stt-1b-en_fr`, or the name of a built-in model.
        revision: A branch, tag or commit of the repository.
        config: Another `config.json`. This and the following are a path, `file://path` or `hf://owner/repo/file`.
        codec_config: Another configuration of the codec.
        lm: Other weights of the LM.
        codec: Other weights of the codec.
        tokenizer: Another SentencePiece model.

    Raises:
        CheckpointError: A file cannot be found or fetched.
        ConfigError: The configuration is wrong.

    Example:
        >>> resolve("kyutai/stt-1b-en_fr-candle", revision="main").config.delay_frames
        6
    """
    place = find_place(ref, revision)
    config_path = find_given(config, place) or place.get("config.json")
    raw = read_json(config_path)
    try:
        if is_transformers(raw):
            parsed = parse_config(raw, _feature_extractor(place))
        else:
            parsed = parse_kyutai(raw, _codec_config(raw, codec_config, place))
    except ConfigError as error:
        raise ConfigError(f"{config_path}: {error}") from error
    files = parsed.files
    lm_path, codec_path = find_given(lm, place), find_given(codec, place)
    if is_transformers(raw):
        shared = () if lm_path and codec_path else find_shards(place)
        extras = (place.get(EXTRAS_FILE),) if parsed.lm.pause_heads or parsed.lm.conditioners else ()
        return Sources(
            config=parsed,
            lm=(lm_path,) if lm_path else (*shared, *extras),
            codec=(codec_path,) if codec_path else shared,
            tokenizer=find_given(tokenizer, place) or _tokenizer(place, files.tokenizer),
        )
    lm_path = lm_path or find_named(place, files.lm)
    stated = raw.get("extra_heads_num_heads") is not None
    parsed = parsed.model_copy(update={"lm": with_pause_heads_of(parsed.lm, lm_path, stated=stated)})
    return Sources(
        config=parsed,
        lm=(lm_path,),
        codec=(codec_path or find_named(place, files.codec),),
        tokenizer=find_given(tokenizer, place) or _beside(config_path, config, files.tokenizer, place),
        adapter=_adapter(raw, files.lora, place, config_path),
    )


def resolve_files(config: STTConfig, *, lm: Ref, codec: Ref, tokenizer: Ref) -> Sources:
    """The sources of a model with this configuration and these files: paths, `file://path` or `hf://owner/repo/file`.

    Raises `CheckpointError` for a file that cannot be found or fetched.
    """
    here = _Folder(Path())
    lm_path, codec_path, tokenizer_path = (find_named(here, os.fspath(file)) for file in (lm, codec, tokenizer))
    config = config.model_copy(update={"lm": with_pause_heads_of(config.lm, lm_path, stated=True)})
    return Sources(config=config, lm=(lm_path,), codec=(codec_path,), tokenizer=tokenizer_path)


def built_in_models() -> tuple[str, ...]:
    """The names of the built-in models."""
    return tuple(sorted(path.parent.name for path in BUILT_IN.glob("*/config.json")))


def find_place(ref: Ref, revision: str | None) -> Place:
    """The place of a checkpoint's files: a folder, a repository on the hub, or a built-in model's folder.

    Raises `CheckpointError` for a `ref` that is none of them.
    """
    name = os.fspath(ref)
    if name in built_in_models():
        return _Folder(BUILT_IN / name)
    if os.path.isdir(name):
        return _Folder(Path(name))
    if os.path.isfile(name):
        raise CheckpointError(f"{name} is a file: give its folder")
    repository = name.removeprefix("hf://")
    if repository == name and (name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1):
        raise CheckpointError(f"{name}: no such folder")
    if isinstance(ref, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return _Repository(repository, revision)
    raise CheckpointError(
        f"{name} is not a folder, a repository id (owner/name) or a built-in model "
        f"({', '.join(built_in_models()) or 'there is none'}){_near(name)}"
    )


def find_named(place: Place, name: str) -> Path:
    """A file that a configuration names, in the same place or in another (`hf://`, `file://`)."""
    return _elsewhere(name, place) or place.get(name)


def find_given(ref: Ref | None, place: Place) -> Path | None:
    """A file that the user names."""
    if ref is None:
        return None
    return _elsewhere(os.fspath(ref), place) or _Folder(Path()).get(os.fspath(ref))


def find_optional(place: Place, name: str) -> Path | None:
    """A file of a place, or None if it has no such file."""
    try:
        return place.get(name)
    except _NotThereError:
        return None


def _near(name: str) -> str:
    """A suggestion of the known names that are close to an unknown one; empty if there are none."""
    known = dict.fromkeys([*built_in_models(), *PRESETS, *SPEECH_MODELS, *_cached_repositories()])
    near = [] if name in known else get_close_matches(name, known, n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _cached_repositories() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--*--*")
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def hub_answers() -> bool:
    """Whether the hub can be reached, by one request a minute: `hf_hub_download` repeats its own for 24 s."""
    return _hub_answers(int(time.monotonic() / 60))


@functools.lru_cache(1)
def _hub_answers(minute: int) -> bool:
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.DEFAULT_ETAG_TIMEOUT)
    except Exception as error:  # of requests or httpx, by the version of huggingface_hub
        logger.debug("%s cannot be reached: %s", constants.ENDPOINT, error)
        return False
    return True


class _NotThereError(CheckpointError):
    """A place does not have a file."""


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path

    def get(self, name: str) -> Path:
        path = self.path / name
        if not os.path.isfile(path):  # False, too, for a name that is too long
            gguf = next(self.path.glob("*.gguf"), None) if path.suffix == ".safetensors" else None
            hint = f"; {gguf.name} is there, but GGUF files are not supported: use the safetensors file" if gguf else ""
            if name == "config.json":
                hint = "; the folder of a model has one, next to the weights"
            raise _NotThereError(f"{path}: no such file{hint}")
        return path


@dataclass(frozen=True, slots=True)
class _Repository:
    name: str
    revision: str | None

    def get(self, name: str) -> Path:
        from huggingface_hub import errors, hf_hub_download

        where = f"{self.name} on the hub" + (f" at revision {self.revision}" if self.revision else "")
        try:
            local = not hub_answers()
            return Path(hf_hub_download(self.name, name, revision=self.revision, local_files_only=local))
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{self.name} is gated: accept its terms at https://huggingface.co/{self.name}, then log in "
                "with `hf auth login` or set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"there is no {self.name} on the hub, and no folder of that name here; "
                f"if it is private, log in with `hf auth login` or set HF_TOKEN{_near(self.name)}"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(f"{self.name} has no revision {self.revision!r}") from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            raise _NotThereError(
                f"{name} of {where} is not in the hub's cache, and the hub cannot be reached (HF_HUB_OFFLINE is set, "
                f"or there is no connection): download it once with a connection, or give a folder{_near(self.name)}"
            ) from error
        except errors.EntryNotFoundError as error:
            raise _NotThereError(f"{where} has no file {name}") from error
        except (errors.HFValidationError, OSError) as error:
            raise CheckpointError(f"{name} of {where} cannot be fetched: {error}") from error


Place = _Folder | _Repository


def _elsewhere(name: str, place: Place) -> Path | None:
    if name.startswith("file://"):
        return _Folder(Path()).get(name.removeprefix("file://"))
    if not name.startswith("hf://"):
        return None
    parts = name.removeprefix("hf://").split("/", 2)
    if len(parts) < 3:
        raise CheckpointError(f"{name} does not name a file: expected hf://owner/repo/file")
    repository = "/".join(parts[:2])
    # A revision belongs to the repository that it was given for.
    if isinstance(place, _Repository) and place.name == repository:
        return place.get(parts[2])
    return _Repository(repository, revision=None).get(parts[2])


def _codec_config(raw: Mapping[str, Any], override: Ref | None, place: Place) -> dict[str, Any] | None:
    name = raw.get("mimi_config_name")
    path = find_given(override, place) or (find_named(place, name) if isinstance(name, str) else None)
    return read_json(path) if path else None


def _adapter(raw: Mapping[str, Any], name: str | None, place: Place, where: Path) -> Adapter | None:
    if bool(raw.get("lora")) != (name is not None):
        raise ConfigError(f"{where}: lora={bool(raw.get('lora'))}, lora_name={name}: an adapter needs both")
    if name is None:
        return None
    return Adapter(_beside(where, where, name, place), raw.get("lora_scaling", LORA_SCALING))


def _beside(config_path: Path, given: Ref | None, name: str, place: Place) -> Path:
    """A file that a configuration names: next to it if that was given, as for an adapter, else in `place`."""
    beside = config_path.parent / name
    return beside if given is not None and beside.is_file() else find_named(place, name)


def _feature_extractor(place: Place) -> Mapping[str, Any]:
    """The feature extractor's configuration: in a separate file, or (since version 5) in the processor's."""
    try:
        return read_json(place.get("preprocessor_config.json"))
    except _NotThereError as missing:
        try:
            inner = read_json(place.get("processor_config.json")).get("feature_extractor")
        except _NotThereError:
            raise missing from None
        return inner if isinstance(inner, Mapping) else {}


def find_shards(place: Place) -> tuple[Path, ...]:
    """The file or files of the weights: `transformers` splits large models into several, listed in an index."""
    try:
        return (place.get(MODEL_FILE),)
    except _NotThereError as missing:
        try:
            index_path = place.get(MODEL_FILE + ".index.json")
        except _NotThereError:
            raise missing from None
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index_path}: weight_map must name the file of each tensor")
    return tuple(place.get(name) for name in sorted(set(weight_map.values())))


def _tokenizer(place: Place, name: str) -> Path:
    try:
        return place.get(name)
    except _NotThereError as missing:
        raise CheckpointError(
            f"{missing}: checkpoints of transformers have no SentencePiece model; pass one as the tokenizer, "
            "such as hf://kyutai/stt-2.6b-en/tokenizer_en_audio_4000.model"
        ) from missing
