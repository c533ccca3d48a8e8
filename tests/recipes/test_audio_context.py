"""Models with Whisper's decoder that attend to fewer frames of audio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from recipes.tiny.audio_context import main
from tests.models import load_checkpoint, random_model, stt_config
from tests.train.whispers import small_tokenizer

from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.bundle import ModelBundle
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint

FRAMES = 3


@pytest.fixture
def model(tmp_path: Path) -> Path:
    small_tokenizer(tmp_path)
    config = stt_config(codec="whisper", decoder=True)
    lm, codec = random_model(config)
    save_checkpoint(Checkpoint(config, lm, codec, tmp_path / "tokenizer.model"), tmp_path / "model", "kyutai")
    return tmp_path / "model"


def logprobs(folder: Path) -> np.ndarray:
    bundle = ModelBundle.resolve(folder)
    checkpoint = load_checkpoint(folder)
    runner = OnnxRunner(bundle.config, checkpoint.lm, checkpoint.codec)
    frames_TBS = np.random.default_rng(0).normal(0, 0.1, (8, 1, runner.frame_samples)).clip(-1, 1).astype(np.float32)
    return np.array([runner.step(frame_BS, np.array([True])).logprob_B[0] for frame_BS in frames_TBS])


def test_older_frames_are_not_attended_to(model: Path, tmp_path: Path) -> None:
    main(model, tmp_path / "short", FRAMES)
    config = ModelBundle.resolve(tmp_path / "short").config.lm
    assert config.whisper is not None
    assert config.whisper.audio_context == FRAMES
    before, after = load_checkpoint(model).lm, load_checkpoint(tmp_path / "short").lm
    for name, array in after.items():
        same = before[name][:, :FRAMES] if name.endswith(".age") else before[name]
        assert (np.asarray(array) == np.asarray(same)).all()
    long, short = logprobs(model), logprobs(tmp_path / "short")
    # The initial tokens are a frame of their own, before the audio.
    np.testing.assert_allclose(short[: FRAMES - 1], long[: FRAMES - 1], atol=1e-5)
    assert np.abs(short[FRAMES:] - long[FRAMES:]).max() > 1e-3


def test_more_frames_than_the_model_has_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="8 frames: expected 1 to 7"):
        main(model, tmp_path / "long", 8)
    assert not (tmp_path / "long").exists()
