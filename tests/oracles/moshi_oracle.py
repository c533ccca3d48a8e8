"""The published `moshi` package as an oracle: its modules holding the same weights as ours."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

# Its functions compile themselves on first use otherwise, which takes longer than everything they are used for here.
os.environ.setdefault("NO_TORCH_COMPILE", "1")
pytest.importorskip("moshi", reason="the reference package moshi is not installed: `make oracles` installs it")

import moshi.models  # noqa: E402
from tests.models import codec_config, random_weights  # noqa: E402

from slipstream.checkpoints.kyutai import dump_kyutai, lm_table  # noqa: E402
from slipstream.checkpoints.mimi import codec_table, dump_codec  # noqa: E402
from slipstream.model.config import CodecConfig, LMConfig, STTConfig  # noqa: E402
from slipstream.model.names import codec_shapes, lm_shapes  # noqa: E402
from slipstream.nn.build import build_codec, build_lm  # noqa: E402

ABOUT_THE_FILES = ("model_id", "lm_gen_config", "stt_config", "model_type", "moshi_name", "mimi_name", "tokenizer_name")


def lm_kwargs(config: LMConfig) -> dict[str, object]:
    """What `moshi` builds an LM from: a published `config.json` without the keys about its files."""
    codec = codec_config(codebook_size=config.audio_vocab, num_codebooks=config.num_codebooks)
    raw = dump_kyutai(STTConfig(codec=codec, lm=config, delay_seconds=0.5, delay_frames=6))
    return {key: value for key, value in raw.items() if key not in ABOUT_THE_FILES}


def lm_pair(config: LMConfig, dtype: torch.dtype = torch.float32, seed: int = 0):
    """Our LM and theirs, with the same random weights."""
    weights = random_weights(lm_shapes(config), seed)
    theirs = moshi.models.get_moshi_lm(None, lm_kwargs(config), device="meta", dtype=dtype)
    theirs.load_state_dict(_tensors(lm_table(config).write(weights), dtype), assign=True)
    return build_lm(config, weights, dtype=dtype), theirs.requires_grad_(False)


def mimi_pair(config: CodecConfig, seed: int = 1):
    """Our codec and theirs, with the same random weights."""
    weights = random_weights(codec_shapes(config), seed)
    theirs = moshi.models.get_mimi(None, dump_codec(config), num_codebooks=config.num_codebooks)
    theirs.load_state_dict(_tensors(codec_table(config).write(weights), torch.float32))
    return build_codec(config, weights), theirs.requires_grad_(False)


def random_events(steps: int, slots: int, seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each step, which slots are reset before it and which advance in it, `[B]` each."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield torch.from_numpy(rng.random(slots) < 0.02), torch.from_numpy(rng.random(slots) < 0.75)


def _tensors(arrays: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(dtype) for name, array in arrays.items()}
