"""The command line of `moshi.run_inference`, on a small random checkpoint."""

from __future__ import annotations

import runpy
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.fakes import tiny_tokenizer, tokenizer_path  # noqa: E402
from tests.models import codec_config, noise_and_tones, random_model, stt_config  # noqa: E402

from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from slipstream.moshi import LMGen, loaders  # noqa: E402
from slipstream.moshi.run_inference import InferenceState, main  # noqa: E402

CONFIG = stt_config(text_vocab=tiny_tokenizer().vocab_size).model_copy(
    update={"silence_prefix_seconds": 1.0, "codec": codec_config()}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    lm, codec = random_model(CONFIG)
    save_checkpoint(Checkpoint(CONFIG, lm, codec, tokenizer_path()), folder, "kyutai")
    return folder


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes((noise_and_tones(1.0) * 32767).astype("<i2").tobytes())
    return path


def expected_text(folder: Path, audio: np.ndarray) -> str:
    """What the published loop writes: the first frame twice, silence before and after."""
    info = loaders.CheckpointInfo.from_hf_repo(str(folder))
    mimi, lm = info.get_mimi(), info.get_moshi(dtype=torch.bfloat16)
    tokenizer, lm_gen = info.get_text_tokenizer(), LMGen(lm, temp_text=0)
    before, after = CONFIG.silence_prefix_seconds, CONFIG.delay_seconds + 1.0
    padded = np.pad(audio, (int(before * 24_000), int(after * 24_000)))
    pieces = []
    with mimi.streaming(1), lm_gen.streaming(1):
        for i in range(len(padded) // 1920):
            codes = mimi.encode(torch.from_numpy(padded[None, None, i * 1920 : (i + 1) * 1920]))
            if i == 0:
                lm_gen.step(codes)
            token = int(lm_gen.step(codes))
            if token not in (0, 3):
                pieces.append(tokenizer.id_to_piece(token).replace("\u2581", " "))
    return "".join(pieces)


def test_it_prints_the_text_of_the_published_loop(folder: Path, recording: Path, capsys) -> None:
    assert main(["--hf-repo", str(folder), "--device", "cpu", str(recording)]) == 0
    from slipstream.audio import load

    text = capsys.readouterr().out.removesuffix("\n")
    assert text == expected_text(folder, load(str(recording)))
    assert text.strip()


def test_it_runs_as_a_module(folder: Path, recording: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["run_inference", "--hf-repo", str(folder), "--device", "cpu", str(recording)])
    monkeypatch.delitem(sys.modules, "slipstream.moshi.run_inference")
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("slipstream.moshi.run_inference", run_name="__main__")
    assert exit.value.code == 0
    assert capsys.readouterr().out.strip()


def test_errors_are_one_line(folder: Path, tmp_path: Path, recording: Path, capsys) -> None:
    assert main(["--hf-repo", str(folder), "--device", "cpu", str(tmp_path / "none.wav")]) == 1
    assert "none.wav" in capsys.readouterr().out
    assert main(["--hf-repo", str(tmp_path / "nowhere"), "--device", "cpu", str(recording)]) == 1
    assert "nowhere" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert main(["--hf-repo", str(folder), str(recording)]) == 1
        assert "use --device cpu" in capsys.readouterr().out


def test_the_state_takes_a_batch(folder: Path) -> None:
    info = loaders.CheckpointInfo.from_hf_repo(str(folder))
    mimi, lm = info.get_mimi(), info.get_moshi(dtype=torch.float32)
    state = InferenceState(info, mimi, info.get_text_tokenizer(), lm, 2, 1.0, "cpu", temp_text=0)
    assert state.run(torch.zeros(2, 1, 4000)) == []
    assert (state.batch_size, state.frame_size) == (2, 1920)
