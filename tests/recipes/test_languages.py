"""The languages that a model with Whisper's decoder is given."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from recipes.tiny.languages import main
from tests.models import load_checkpoint, random_model, stt_config
from tests.train.whispers import VOCABULARY, D, decoder, small_tokenizer, write_checkpoint

from slipstream.bundle import ModelBundle
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint


def test_languages_differ_by_their_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whisper").mkdir()
    vocabulary = VOCABULARY | {"<|fr|>": len(VOCABULARY)}
    write_checkpoint(decoder(vocabulary=vocabulary), vocabulary, tmp_path / "whisper")
    small_tokenizer(tmp_path)
    config = stt_config(codec="whisper", decoder=True)
    assert config.lm.transformer.dim == D
    whisper = config.lm.whisper.model_copy(update={"prefix": 4})
    config = config.model_copy(update={"lm": config.lm.model_copy(update={"whisper": whisper})})
    lm, codec = random_model(config)
    save_checkpoint(Checkpoint(config, lm, codec, tmp_path / "tokenizer.model"), tmp_path / "before", "kyutai")
    folders = [str(tmp_path / name) for name in ("before", "after", "whisper")]
    monkeypatch.setattr(sys, "argv", ["languages.py", *folders[:2], "--whisper", folders[2], "--languages", "en", "fr"])
    main()
    assert ModelBundle.resolve(tmp_path / "after").config.lm.languages == ("en", "fr")
    before, after = load_checkpoint(tmp_path / "before").lm, load_checkpoint(tmp_path / "after").lm
    added = {name: np.asarray(array, np.float32) for name, array in after.items() if name.endswith(".languages")}
    assert added.keys() == after.keys() - before.keys()
    assert len(added) == config.lm.transformer.num_layers
    for languages_L2HPd in added.values():
        assert np.abs(languages_L2HPd[:, :, :, 1:]).max() > 0  # before the language, the prompts are the same
        assert not languages_L2HPd[:, :, :, 0].any()
        np.testing.assert_allclose(languages_L2HPd[0], -languages_L2HPd[1], atol=1e-2)
