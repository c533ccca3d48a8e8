"""Open a text-to-speech checkpoint with PyTorch."""

from __future__ import annotations

import torch

from slipstream.backends.torch.speech import TorchSpeechRunner
from slipstream.checkpoints.speech import SpeechCheckpoint
from slipstream.errors import BackendError, ConfigError
from slipstream.model.tts_config import SpeechSampling
from slipstream.nn.build import build_codec, build_lm


def open_speech_runner(
    checkpoint: SpeechCheckpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    slots: int = 1,
    sampling: SpeechSampling | None = None,
    guidance: float = 1.0,
    codebooks: int | None = None,
) -> TorchSpeechRunner:
    """Put a model on a device; see `load_speaker` for the arguments.

    Raises:
        BackendError: PyTorch cannot use the device.
        ConfigError: A setting is unknown, or the model does not have it.
    """
    if device in ("auto", "gpu"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype={dtype!r}: expected auto, float32 or bfloat16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"device={device!r}: torch {torch.__version__} cannot use it: {reason}") from error
    config = checkpoint.config
    codec = build_codec(config.codec, checkpoint.codec, device=device)
    lm = build_lm(config.lm, checkpoint.lm, device=device, dtype=getattr(torch, dtype))
    lm.conditioners.float()  # as in training
    return TorchSpeechRunner(config, codec, lm, slots=slots, sampling=sampling, guidance=guidance, codebooks=codebooks)
