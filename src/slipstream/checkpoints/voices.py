"""Voices in the published format: a safetensors file with `speaker_wavs`, or a recording to continue."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from slipstream.audio.suffixes import audio_suffixes
from slipstream.checkpoints.sources import Ref, find_given, find_place
from slipstream.checkpoints.tensors import read_tensors
from slipstream.errors import CheckpointError
from slipstream.model.config import SPEAKER_CONDITION
from slipstream.model.speech import Voice
from slipstream.model.tts_config import TTSConfig

VOICES = "kyutai/tts-voices"
"""Kyutai's repository of voices."""


def voice_suffix(config: TTSConfig) -> str:
    """The end of the file name of an embedding for this model, such as `.1e68beda@240.safetensors`."""
    model_id = config.model_id
    return f".{model_id['sig']}@{model_id['epoch']}.safetensors" if model_id.keys() >= {"sig", "epoch"} else ""


def find_voice(name: Ref, config: TTSConfig, voices: Ref = VOICES, *, anywhere: bool = True) -> Path:
    """Find the file of a voice.

    Args:
        name: A path, `hf://owner/repo/file`, or a name in `voices`, such as
            `expresso/ex03-ex01_happy_001_channel1_334s.wav`. The suffix of the model's embeddings is added.
        config: The model.
        voices: A folder, or a repository on the Hub.
        anywhere: Whether the name may be a path, or a file of another repository.

    Raises:
        CheckpointError: There is no such file.
    """
    text = os.fspath(name)
    if anywhere and os.path.isfile(text):
        return Path(text)
    place = find_place(voices, None)
    suffix = voice_suffix(config) if config.speakers_by_condition and not text.endswith(".safetensors") else ""
    if anywhere and text.startswith(("hf://", "file://")):
        found = find_given(text + suffix, place)
        assert found is not None
        return found
    return place.get(text + suffix)


def voice_names(config: TTSConfig, voices: Ref) -> list[str]:
    """Return the names of the voices for a model in a folder, sorted; none for a repository on the Hub.

    Args:
        config: The model.
        voices: As for `find_voice`.
    """
    folder = Path(voices)
    suffix = voice_suffix(config) if config.speakers_by_condition else ""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if config.speakers_by_condition:
        return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix or ".safetensors"))
    return sorted(name for name in names if Path(name).suffix in audio_suffixes())


def read_embedding(path: Path) -> Voice:
    """Read the embedding of a voice. Raises `CheckpointError` if the file is not one."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is not the embedding of a voice: expected a .safetensors file")
    found = read_tensors(path).get(SPEAKER_CONDITION)
    if found is None or found.ndim != 3 or len(found) != 1:
        raise CheckpointError(f"{path} has no tensor {SPEAKER_CONDITION} of shape [1, width, frames]")
    embedding = np.asarray(found[0], np.float32)
    if not np.isfinite(embedding).all():
        raise CheckpointError(f"{path}: the tensor {SPEAKER_CONDITION} has numbers that are not finite")
    return Voice(path.name, embeddings=(embedding,))
