"""Text-to-speech checkpoints: find their files, read them, and write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slipstream.checkpoints.checkpoint import read_codec, read_lm, write_folder
from slipstream.checkpoints.kyutai_tts import dump_tts, parse_tts
from slipstream.checkpoints.layouts import LAYOUTS
from slipstream.checkpoints.mimi import dump_codec
from slipstream.checkpoints.sources import Ref, find_given, find_named, find_place
from slipstream.checkpoints.tensors import Tensors
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import CodecConfig
from slipstream.model.tts_config import TTSConfig
from slipstream.schema import read_json

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from slipstream.checkpoints.sources import Origin

SPEECH_LAYOUTS = ("kyutai", "candle")
"""The layouts that have a depth Transformer: Kyutai's for PyTorch, and their Rust server's."""


@dataclass(frozen=True, slots=True)
class SpeechSources:
    """A text-to-speech model's configuration, and its files on this machine."""

    config: TTSConfig
    lm: Path
    codec: Path
    tokenizer: Path


@dataclass(frozen=True, slots=True)
class SpeechCheckpoint:
    """A whole text-to-speech model: configuration, tensors under canonical names, and the tokenizer's file."""

    config: TTSConfig
    lm: Tensors
    codec: Tensors
    tokenizer: Path


def resolve_speech(ref: Ref, **origin: Unpack[Origin]) -> SpeechSources:
    """Find every file of a text-to-speech checkpoint; download what the hub's cache does not have.

    Args:
        ref: A folder, or a repository id such as `kyutai/tts-1.6b-en_fr`.
        **origin: Where single parts come from: see `checkpoints.sources.resolve`.

    Raises:
        CheckpointError: A file cannot be found or fetched.
        ConfigError: The configuration is wrong, or the model is not one for text to speech.

    Example:
        >>> resolve_speech("kyutai/tts-1.6b-en_fr").config.delay_steps  # doctest: +SKIP
        16
    """
    place = find_place(ref, origin.get("revision"))
    path = find_given(origin.get("config"), place) or place.get("config.json")
    raw = read_json(path)
    name = raw.get("mimi_config_name")
    codec_path = find_given(origin.get("codec_config"), place) or (find_named(place, name) if name else None)
    try:
        config = parse_tts(raw, read_json(codec_path) if codec_path else None)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    files = config.files
    return SpeechSources(
        config=config,
        lm=find_given(origin.get("lm"), place) or find_named(place, files.lm),
        codec=find_given(origin.get("codec"), place) or find_named(place, files.codec),
        tokenizer=find_given(origin.get("tokenizer"), place) or find_named(place, files.tokenizer),
    )


def read_speech(sources: SpeechSources) -> SpeechCheckpoint:
    """Read the tensors of a checkpoint of either layout.

    Raises `CheckpointError` if a file cannot be read, or tensors do not fit the configuration.
    """
    config = sources.config
    return SpeechCheckpoint(
        config, read_lm([sources.lm], config.lm), read_codec([sources.codec], config.codec), sources.tokenizer
    )


def save_speech(checkpoint: SpeechCheckpoint, folder: Path, layout: str = "kyutai") -> None:
    """Write a checkpoint into a folder, which is created if it does not exist.

    Args:
        checkpoint: The model.
        folder: Where to write.
        layout: A name in `SPEECH_LAYOUTS`.

    Raises:
        CheckpointError: The layout cannot hold the model: the Rust server has no second text stream.
    """
    if layout not in SPEECH_LAYOUTS:
        raise CheckpointError(f"layout {layout!r} has no depth Transformer: expected {' or '.join(SPEECH_LAYOUTS)}")
    config, tables = checkpoint.config, LAYOUTS[layout]
    tensors = {
        "model.safetensors": tables.lm(config.lm).write(checkpoint.lm),
        "mimi.safetensors": tables.codec(config.codec).write(checkpoint.codec),
    }
    own_codec = "mimi.json" if config.codec != CodecConfig() else None
    files = config.files.model_copy(
        update={
            "lm": "model.safetensors",
            "codec": "mimi.safetensors",
            "codec_config": own_codec,
            "tokenizer": checkpoint.tokenizer.name,
        }
    )
    texts = {"config.json": dump_tts(config.model_copy(update={"files": files}))}
    if own_codec:
        texts[own_codec] = dump_codec(config.codec)
    write_folder(folder, texts, tensors, checkpoint.tokenizer, files.tokenizer)
