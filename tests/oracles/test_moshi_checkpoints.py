"""Checkpoints between ours and the `moshi` package: its loaders read what we write, we read what it saves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.models import lm_config, load_checkpoint, random_model, stt_config
from tests.oracles.moshi_oracle import moshi, torch

from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint
from slipstream.checkpoints.mimi import dump_codec
from slipstream.model.config import ConditionerConfig, STTConfig

CONDITIONERS = (
    ConditionerConfig(name="control", kind="lut", dim=6, num_bins=4, possible_values=("good", "bad")),
    ConditionerConfig(name="speaker", kind="tensor", dim=10),
)
SMALL = lm_config().transformer.model_copy(update={"dim": 64, "num_heads": 4, "ffn_dim": 168})
CONFIGS = {
    "odd": stt_config(conditioners=CONDITIONERS),
    "small": stt_config(transformer=SMALL, conditioners=(), pause_heads=0),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def made(config: STTConfig, folder: Path) -> Checkpoint:
    lm, codec = random_model(config)
    tokenizer = folder / "spm.model"
    tokenizer.write_bytes(b"")
    return Checkpoint(config, lm, codec, tokenizer)


def published(folder: Path):
    """The model that the `moshi` package loads from a folder, as from a repository."""
    raw = json.loads((folder / "config.json").read_text())
    return moshi.models.loaders.CheckpointInfo.from_hf_repo(
        "not/reached",
        config_path=folder / "config.json",
        mimi_config_path=folder / raw["mimi_config_name"],
        moshi_weights=folder / raw["moshi_name"],
        mimi_weights=folder / raw["mimi_name"],
        tokenizer=folder / raw["tokenizer_name"],
    )


@every_config
@pytest.mark.parametrize("layout", ["kyutai", "candle"])
def test_its_loaders_read_our_files(config: STTConfig, layout: str, tmp_path: Path) -> None:
    checkpoint = made(config, tmp_path)
    save_checkpoint(checkpoint, tmp_path / "saved", layout)
    info = published(tmp_path / "saved")
    assert info.model_type == "stt"
    assert info.stt_config["audio_delay_seconds"] == 0.5
    lm, mimi = info.get_moshi(dtype=torch.float32), info.get_mimi()
    weights = lm.state_dict()
    assert np.array_equal(weights["emb.1.weight"], checkpoint.lm["audio_emb.weight"][1])
    in_proj = weights["transformer.layers.1.self_attn.in_projs.0.weight"]
    assert np.array_equal(in_proj, checkpoint.lm["transformer.layers.1.attn.in_proj.weight"])
    codebook = mimi.state_dict()["quantizer.rvq_rest.vq.layers.4._codebook.embedding_sum"]
    assert np.array_equal(codebook, checkpoint.codec["quantizer.acoustic.codebooks.4.embedding_sum"])


@every_config
def test_we_read_what_its_models_save(config: STTConfig, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    checkpoint = made(config, tmp_path)
    folder = tmp_path / "saved"
    save_checkpoint(checkpoint, folder, "kyutai")
    info = published(folder)
    saved = info.get_moshi(dtype=torch.float32).state_dict()
    assert "transformer.layers.0.self_attn.in_projs.0.weight" in saved, "the modules' own spelling"
    save_file(saved, folder / "model.safetensors")
    save_file(info.get_mimi().state_dict(), folder / config.files.codec)
    loaded = load_checkpoint(folder)
    for ours, theirs in ((checkpoint.lm, loaded.lm), (checkpoint.codec, loaded.codec)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_model_with_another_shape_is_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = CONFIGS["odd"]
    folder = tmp_path / "saved"
    save_checkpoint(made(config, tmp_path), folder, "kyutai")
    info = published(folder)
    fresh = info.get_moshi(dtype=torch.float32, load_weight=False).state_dict()
    mimi = moshi.models.get_mimi(None, dump_codec(config.codec), num_codebooks=config.codec.num_codebooks).state_dict()
    save_file(fresh, folder / "model.safetensors")
    save_file(mimi, folder / config.files.codec)
    loaded = load_checkpoint(folder)
    assert np.array_equal(loaded.lm["transformer.layers.0.norm1.weight"], np.ones(42, np.float32))
    assert sum(array.size for array in loaded.lm.values()) == sum(tensor.numel() for tensor in fresh.values())
    flags = [name for name in mimi if name.endswith("_initialized")]
    assert sum(array.size for array in loaded.codec.values()) + len(flags) == sum(x.numel() for x in mimi.values())
