"""Converted folders: they give the results of the weights, and appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from tests.fakes import tokenizer_path
from tests.models import CODECS, noise_and_tones, random_model, stt_config, whisper_codec_config

from slipstream.backends.onnx.export import CODEC_FILE, LM_FILE, cache_folder, export
from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.bundle import ModelBundle
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint
from slipstream.checkpoints.sources import resolve
from slipstream.errors import CheckpointError
from slipstream.model.config import RecordingsConfig, STTConfig


class Loader:
    """Gives a checkpoint and counts how often it was asked to."""

    def __init__(self, folder: Path, config: STTConfig | None = None) -> None:
        self.config = config or stt_config()
        self.tokenizer = folder / "tokenizer.model"
        self.tokenizer.write_bytes(b"a tokenizer")
        self.calls = 0

    def __call__(self) -> Checkpoint:
        self.calls += 1
        lm, codec = random_model(self.config)
        return Checkpoint(self.config, lm, codec, self.tokenizer)


def outputs(runner: OnnxRunner) -> list[tuple[int, float]]:
    audio = noise_and_tones(20 * 0.08).reshape(20, 1, 1920)
    steps = [runner.step(frame, np.array([True])) for frame in audio]
    return [(int(step.token_B[0]), float(step.logprob_B[0])) for step in steps]


@pytest.mark.parametrize("quantize", [None, "int4"])
@pytest.mark.parametrize("model", [*CODECS, "decoder"])
def test_a_converted_folder_gives_the_results_of_its_weights(tmp_path: Path, quantize: str | None, model: str):
    if model == "decoder":
        config = stt_config(codec="whisper", decoder=True)
    else:
        config = stt_config(codec=model).model_copy(update={"condition_values": {"delay": 2.0}})
    export(Loader(tmp_path, config), tmp_path / "out", quantize=quantize)
    sources = resolve(tmp_path / "out")
    assert sources.config.lm == config.lm
    assert sources.config.codec == config.codec
    assert sources.tokenizer.read_bytes() == b"a tokenizer"
    assert (sources.lm, sources.codec) == ((tmp_path / "out" / LM_FILE,), (tmp_path / "out" / CODEC_FILE,))
    from_files = OnnxRunner(sources.config, sources.lm[0], sources.codec[0], threads=1)
    assert outputs(from_files) == outputs(OnnxRunner(config, *random_model(config), threads=1, quantize=quantize))


def test_a_converted_model_has_both_lookaheads_and_one_file_of_weights(tmp_path: Path):
    config = stt_config(codec="whisper", decoder=True)
    config = config.model_copy(update={"recordings": RecordingsConfig(lookahead=12, delay_frames=12)})
    load = Loader(tmp_path, config)
    load.tokenizer.write_bytes(tokenizer_path().read_bytes())
    export(load, tmp_path / "out", quantize="int8")
    graphs = {"codec.onnx", "codec-lookahead-12.onnx", "codec.onnx.data"}
    assert {path.name for path in (tmp_path / "out").glob("codec*")} == graphs
    bundle = ModelBundle.resolve(tmp_path / "out")
    assert bundle.config.recordings == config.recordings
    found = []
    for one, expected in ((bundle, config), (bundle.for_recordings(), config.for_recordings())):
        found.append(outputs(one.open(backend="onnx", threads=1)))
        weights = random_model(expected)
        assert found[-1] == outputs(OnnxRunner(expected, *weights, threads=1, quantize="int8"))
    assert found[0] != found[1]


@pytest.mark.parametrize("lookahead", [0, 5])
def test_a_graph_of_another_lookahead_is_refused(tmp_path: Path, lookahead: int):
    config = stt_config(codec="whisper", decoder=True)
    export(Loader(tmp_path, config), tmp_path / "out", quantize=None)
    other = config.model_copy(update={"codec": whisper_codec_config(lookahead)})
    with pytest.raises(CheckpointError, match=f"lookahead of 4 positions, the configuration one of {lookahead}: conv"):
        OnnxRunner(other, tmp_path / "out" / LM_FILE, tmp_path / "out" / CODEC_FILE, threads=1)


def test_conversions_of_another_lookahead_are_others(tmp_path: Path):
    config = stt_config(codec="whisper", decoder=True)
    config = config.model_copy(update={"recordings": RecordingsConfig(lookahead=12, delay_frames=12)})
    save_checkpoint(Checkpoint(config, *random_model(config), Loader(tmp_path).tokenizer), tmp_path / "model", "kyutai")
    bundle = ModelBundle.resolve(tmp_path / "model")
    live, recordings = (cache_folder(tmp_path, one.sources, "int8") for one in (bundle, bundle.for_recordings()))
    assert live != recordings


def test_an_existing_conversion_is_reused(tmp_path: Path):
    load = Loader(tmp_path)
    for _ in range(2):
        export(load, tmp_path / "out", quantize="int8")
    assert load.calls == 1


def test_threads_that_want_the_same_folder_wait_for_one(tmp_path: Path):
    load = Loader(tmp_path)
    threads = [Thread(target=export, args=(load, tmp_path / "out"), kwargs={"quantize": None}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load.calls == 1


def test_an_interrupted_conversion_leaves_nothing_and_is_repeated(tmp_path: Path):
    load = Loader(tmp_path)

    def die_in_the_codec(done: int, total: int) -> None:
        if (tmp_path / ".out.partial" / LM_FILE).exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(load, tmp_path / "out", quantize=None, progress=die_in_the_codec)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.partial" / LM_FILE).exists(), "it died in the middle"
    export(load, tmp_path / "out", quantize=None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "codec.onnx",
        "codec.onnx.data",
        "config.json",
        "lm.onnx",
        "lm.onnx.data",
        "mimi.json",
        "tokenizer.model",
    ]
    assert not (tmp_path / ".out.partial").exists()


def test_progress_rises_to_the_whole(tmp_path: Path):
    heard: list[tuple[int, int]] = []
    export(Loader(tmp_path), tmp_path / "out", quantize="int8", progress=lambda *at: heard.append(at))
    done, totals = zip(*heard, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}
    assert len(heard) > 20


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/out: cannot write"):
        export(Loader(tmp_path), tmp_path / "file" / "out", quantize=None)


@pytest.mark.parametrize("damage", ["truncated weights", "no weights", "truncated graph", "another version", "missing"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str):
    export(Loader(tmp_path), tmp_path / "out", quantize=None)
    graph, weights = tmp_path / "out" / LM_FILE, tmp_path / "out" / f"{LM_FILE}.data"
    if damage == "truncated weights":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "no weights":
        weights.unlink()
    elif damage == "truncated graph":
        os.truncate(graph, graph.stat().st_size // 2)
    elif damage == "another version":
        graph.write_bytes(graph.read_bytes().replace(b"slipstream_graph", b"slipstream_grape"))
    else:
        graph.unlink()
    with pytest.raises(CheckpointError, match=r"lm\.onnx"):
        OnnxRunner(stt_config(), graph, tmp_path / "out" / CODEC_FILE, threads=1)


def test_a_changed_file_or_setting_has_another_cache_folder(tmp_path: Path):
    export(Loader(tmp_path), tmp_path / "out", quantize=None)
    sources = resolve(tmp_path / "out")
    first = cache_folder(tmp_path, sources, "int8")
    assert first == cache_folder(tmp_path, resolve(tmp_path / "out"), "int8")
    assert first != cache_folder(tmp_path, sources, "int4")
    os.utime(sources.lm[0], (1, 1))
    assert first != cache_folder(tmp_path, sources, "int8")
