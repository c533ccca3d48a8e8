"""A trained model as a checkpoint folder that every backend loads, with a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint, write_folder
from slipstream.checkpoints.mimi import codec_table, dump_codec
from slipstream.checkpoints.speech import SpeechCheckpoint, save_speech
from slipstream.checkpoints.tensors import DTYPES, Array
from slipstream.model.config import CodecConfig, STTConfig
from slipstream.model.names import is_decoder
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Mimi
from slipstream.train.decoder import TrainedDecoder
from slipstream.train.distil import Distilled
from slipstream.train.model import SpeechModel, start_audio_embeddings

_AVERAGES = ("embedding_sum", "cluster_usage")


def export_model(model: SpeechModel, config: STTConfig, tokenizer: Path, folder: Path) -> None:
    """Fold the tied embeddings into tables and write the codec and the LM into `folder`, in Kyutai's layout.

    Both are in bfloat16, except for the quantiser's averages, which stay float32.
    """
    model.fold()
    codec, lm = _arrays(model.codec, "bfloat16"), _arrays(model.lm, "bfloat16")
    save_checkpoint(Checkpoint(config, lm, codec, tokenizer), folder, "kyutai")


def export_distilled(model: Distilled, tokenizer: Path, folder: Path) -> None:
    """Write a distilled codec into `folder`, a whole model in Kyutai's layout, with an untrained LM."""
    torch.manual_seed(0)
    lm = LM(model.config.lm)
    start_audio_embeddings(lm, model.codec)
    codec = _arrays(model.codec, "float32")
    save_checkpoint(Checkpoint(model.config, _arrays(lm, "bfloat16"), codec, tokenizer), folder, "kyutai")


def export_lm(weights: Mapping[str, Tensor], beside: Checkpoint, folder: Path, *, dtype: str = "bfloat16") -> None:
    """Write an LM's weights with the configuration, codec and tokenizer of `beside` into `folder`."""
    save_checkpoint(replace(beside, lm=_cast(weights, dtype)), folder, "kyutai")


def export_speech(lm: LM, beside: SpeechCheckpoint, folder: Path) -> None:
    """Write an LM that speaks with the configuration, codec and tokenizer of `beside` into `folder`."""
    save_speech(replace(beside, lm=_arrays(lm, "bfloat16")), folder)


def export_codec(codec: Mimi, folder: Path) -> None:
    """Write a codec alone, in Kyutai's layout: `mimi.safetensors` and `mimi.json`."""
    _save_codec(codec.config, _arrays(codec, "float32"), folder)


def export_decoder(
    decoder: TrainedDecoder, frozen: Mapping[str, Array], beside: Checkpoint | None, folder: Path
) -> None:
    """Write a codec with its decoder, and the model `beside` it if there is one; the rest is as in `frozen`."""
    config = decoder.codec.config
    kept = {name: array for name, array in frozen.items() if not is_decoder(name)}
    codec = kept | _cast(decoder.tensors(), "float32")
    if beside is None:
        _save_codec(config, codec, folder)
        return
    changed = beside.config.model_copy(update={"codec": config})
    save_checkpoint(replace(beside, config=changed, codec=codec), folder, "kyutai")


def _save_codec(config: CodecConfig, tensors: Mapping[str, Array], folder: Path) -> None:
    written = codec_table(config).write(tensors)
    write_folder(folder, {"mimi.json": dump_codec(config)}, {"mimi.safetensors": written})


def _arrays(module: torch.nn.Module, dtype: str) -> dict[str, Array]:
    return _cast(module.state_dict(), dtype)


def _cast(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Array]:
    return {
        name: tensor.detach().float().cpu().numpy().astype("float32" if name.endswith(_AVERAGES) else DTYPES[dtype])
        for name, tensor in tensors.items()
    }
