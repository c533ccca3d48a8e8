"""Text-to-speech models of the published `moshi` package, with the same weights as ours."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
from tests.models import codec_config, random_weights
from tests.oracles.moshi_oracle import moshi, torch

from slipstream.checkpoints.kyutai import lm_table
from slipstream.checkpoints.kyutai_tts import dump_tts
from slipstream.model.config import LMConfig
from slipstream.model.names import lm_shapes
from slipstream.model.tts_config import TTSConfig
from slipstream.moshi.models import LMModel
from slipstream.nn.build import build_lm

# Their module reads and writes WAV files with `sphn`, which no test needs.
_absent = "sphn" not in sys.modules
sys.modules.setdefault("sphn", ModuleType("sphn"))
import moshi.models.tts as their_tts  # noqa: E402

if _absent:
    del sys.modules["sphn"]

__all__ = ["their_tts", "tts_kwargs", "tts_pair"]

ABOUT_THE_FILES = ("model_id", "lm_gen_config", "tts_config", "model_type", "moshi_name", "mimi_name", "tokenizer_name")


def tts_kwargs(config: LMConfig) -> dict[str, object]:
    """What `moshi` builds an LM from."""
    codec = codec_config(codebook_size=config.audio_vocab, num_codebooks=config.num_codebooks)
    raw = dump_tts(TTSConfig(codec=codec, lm=config, delay_seconds=0.4))
    return {key: value for key, value in raw.items() if key not in ABOUT_THE_FILES}


def tts_pair(config: LMConfig, seed: int = 0):
    """Our LM under their calls, and theirs, with the same random weights."""
    weights = random_weights(lm_shapes(config), seed)
    theirs = moshi.models.get_moshi_lm(None, tts_kwargs(config), device="cpu", dtype=torch.float32)
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in lm_table(config).write(weights).items()
    }
    theirs.load_state_dict(tensors)
    return LMModel(build_lm(config, weights)).eval(), theirs.eval().requires_grad_(False)
