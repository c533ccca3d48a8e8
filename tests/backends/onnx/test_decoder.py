"""Whisper's decoder as the LM: its graph and streams against the PyTorch model, idle slots, stored 8-bit weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tests.models import load_checkpoint, random_model, random_weights, stt_config

from slipstream.backends.onnx.codec import codec_model
from slipstream.backends.onnx.graph import Model
from slipstream.backends.onnx.inference import open_session
from slipstream.backends.onnx.lm import lm_model
from slipstream.backends.onnx.quantization import BLOCK, Bits, dequantize
from slipstream.backends.onnx.quantization import quantize as quantized
from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.backends.onnx.text_streams import DecoderStreams, TextStreams, text_streams
from slipstream.backends.onnx.transformer import Quantize
from slipstream.checkpoints.checkpoint import Checkpoint, read_codec, read_lm, save_checkpoint
from slipstream.checkpoints.tensors import read_tensors
from slipstream.errors import ConfigError
from slipstream.model.config import PAD_ID, WORD_ID, LMConfig
from slipstream.model.names import lm_shapes
from slipstream.testing import decoder_lm_config

STEPS = 40  # the text has 20 tokens: all rings and the table of positions wrap
vectors_per_frame = pytest.mark.parametrize("vectors", [1, 4])
SAME = 0.999  # cosine of logits that differ by the rounding of the inputs of linear layers


def size(**changes: object) -> LMConfig:
    """A small decoder with another size. `changes`: fields of `TransformerConfig`."""
    config = decoder_lm_config()
    return decoder_lm_config(transformer=config.transformer.model_copy(update=changes))


def audio_context(frames: int, vectors: int = 1) -> LMConfig:
    config = decoder_lm_config(vectors)
    assert config.whisper is not None
    return decoder_lm_config(whisper=config.whisper.model_copy(update={"audio_context": frames}))


def streams(config: LMConfig, slots: int = 1, quantize: Quantize = None) -> TextStreams:
    model = lm_model(config, random_weights(lm_shapes(config)), {}, quantize=quantize)
    codes = np.zeros((slots, config.num_codebooks), np.int64)
    return text_streams(config, open_session(model, threads=1), slots, codes)


def tokens(config: LMConfig, steps: int = STEPS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens of a stream from the initial ones on, every second one text: `[steps]` and `[steps, K]`."""
    rng = np.random.default_rng(seed)
    text_T = rng.choice([PAD_ID, WORD_ID, *range(4, config.text_vocab)], steps, p=[0.3, 0.2, *[0.125] * 4])
    codes_TK = rng.integers(0, config.audio_vocab, (steps, config.num_codebooks))
    text_T[0], codes_TK[0] = config.text_initial_id, config.audio_initial_id
    return text_T, codes_TK


def feed(lm: TextStreams, text_T: np.ndarray, codes_TK: np.ndarray, start: int = 0) -> np.ndarray:
    """Logits `[T, V]` of slot 0, the only active one, for tokens from frame `start` on."""
    active_B = np.arange(len(lm.text_B)) == 0
    out = []
    for frame, (text, codes_K) in enumerate(zip(text_T, codes_TK, strict=True), start=start):
        lm.text_B[:], lm.codes_BK[:] = text, codes_K
        lm.step(np.full(len(lm.text_B), frame), active_B)
        out.append(lm.logits_BV[0].copy())
    return np.stack(out)


def similarity(found_TV: np.ndarray, expected_TV: np.ndarray) -> float:
    """The mean cosine of logits."""
    lengths_T = np.linalg.norm(found_TV, axis=-1) * np.linalg.norm(expected_TV, axis=-1)
    return float(((found_TV * expected_TV).sum(-1) / lengths_T).mean())


def offline(config: LMConfig, weights: dict[str, np.ndarray], text_T: np.ndarray, codes_TK: np.ndarray) -> np.ndarray:
    """Logits `[T, V]` of the PyTorch model for the whole sequence."""
    torch = pytest.importorskip("torch")
    from slipstream.nn.build import build_lm

    lm = build_lm(config, weights)
    with torch.inference_mode():
        hidden, _ = lm(torch.from_numpy(text_T)[None], torch.from_numpy(codes_TK.T.copy())[None])
        logits: np.ndarray = lm.text_logits(hidden)[0].numpy()
    return logits


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(decoder_lm_config(), id="small"),
        pytest.param(size(dim=42), id="heads of 14, which are padded"),
        pytest.param(size(context=1), id="no text before"),
        pytest.param(size(context=2), id="one token before"),
        pytest.param(audio_context(1), id="no audio before"),
        pytest.param(decoder_lm_config(4), id="four vectors"),
        pytest.param(decoder_lm_config(3, transformer=size(dim=42).transformer), id="three vectors, padded heads"),
        pytest.param(audio_context(1, vectors=2), id="two vectors, no audio before"),
        pytest.param(size(context=100), id="all text"),
    ],
)
def test_a_stream_equals_the_torch_models_whole_sequence(config: LMConfig):
    text_T, codes_TK = tokens(config)
    expected = offline(config, random_weights(lm_shapes(config)), text_T, codes_TK)
    np.testing.assert_allclose(feed(streams(config), text_T, codes_TK), expected, atol=2e-4)


@pytest.mark.parametrize(("quantize", "bits"), [("int8", 8), ("int4", 4)])
@vectors_per_frame
def test_a_quantised_stream_equals_the_torch_model_with_rounded_weights(quantize: Quantize, bits: Bits, vectors: int):
    config = decoder_lm_config(vectors)
    text_T, codes_TK = tokens(config)
    weights = random_weights(lm_shapes(config))
    for name, weight in weights.items():
        if name.endswith(("_proj.weight", "linear_in.weight", "linear_out.weight", "spread.weight")):
            weights[name] = dequantize(*quantized(weight, bits), bits, weight.shape[1])
    expected = offline(config, weights, text_T, codes_TK)
    assert similarity(feed(streams(config, quantize=quantize), text_T, codes_TK), expected) > SAME


@pytest.mark.parametrize("before", [3, 12, 25])
@pytest.mark.parametrize("idle", [PAD_ID, 5])
@vectors_per_frame
def test_steps_of_others_change_no_bit_of_an_idle_slot(before: int, idle: int, vectors: int):
    """Its next token may be another one than it has while it is idle: `OnnxRunner.force` replaces it."""
    config = decoder_lm_config(vectors)
    text_T, codes_TK = tokens(config)
    lm = streams(config, slots=2)
    feed(lm, text_T[:before], codes_TK[:before])
    for frame in range(9):
        lm.text_B[0] = idle
        lm.step(np.array([before, frame]), np.array([False, True]))
    later = feed(lm, text_T[before:], codes_TK[before:], start=before)
    whole = feed(streams(config, slots=2), text_T, codes_TK)
    np.testing.assert_array_equal(later, whole[before:])


@pytest.mark.parametrize("before", [1, 2, 12, 25])
@vectors_per_frame
def test_a_copy_continues_in_another_slot_of_other_streams(before: int, vectors: int):
    config = decoder_lm_config(vectors)
    text_T, codes_TK = tokens(config)
    first, second = streams(config, slots=2), streams(config, slots=2)
    whole = feed(first, text_T, codes_TK)
    feed(second, *tokens(config, seed=1))
    third = streams(config, slots=2)
    feed(third, text_T[:before], codes_TK[:before])
    saved = third.read(0, before)
    feed(third, *tokens(config, seed=2), start=before)
    second.write(0, saved)
    np.testing.assert_array_equal(feed(second, text_T[before:], codes_TK[before:], start=before), whole[before:])


def test_a_pause_of_any_length_changes_no_key_of_the_text():
    config = decoder_lm_config()
    lm = streams(config)
    assert isinstance(lm, DecoderStreams)
    text_T, codes_TK = tokens(config)
    feed(lm, text_T, codes_TK)
    before = lm.read(0, STEPS)
    feed(lm, np.full(30, PAD_ID), np.resize(codes_TK, (30, config.num_codebooks)), start=STEPS)
    after = lm.read(0, STEPS + 30)
    assert (before["count"], before["held"]) == (after["count"], after["held"])
    older = config.transformer.context - 1
    np.testing.assert_array_equal(before["text"][..., :older, :], after["text"][..., :older, :])
    assert not np.array_equal(before["audio"], after["audio"])


@pytest.mark.parametrize("bits", [5, 8])
def test_stored_weights_give_the_same_graphs_without_floats(tmp_path: Path, bits: int):
    config = stt_config(codec="whisper", decoder=True, vectors=2)
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(b"a tokenizer")
    save_checkpoint(Checkpoint(config, *random_model(config), tokenizer), tmp_path / "out", "kyutai", quantize=bits)
    files = load_checkpoint(tmp_path / "out").config.files
    lm, codec = ([tmp_path / "out" / name] for name in (files.lm, files.codec))

    def models(keep_int8: bool) -> tuple[Model, Model]:
        K = config.lm.num_codebooks
        codec_weights = read_codec(codec, config.codec, keep_int8=keep_int8)
        return (
            lm_model(config.lm, read_lm(lm, config.lm, keep_int8=keep_int8), {}, quantize="int8"),
            codec_model(config.codec, codec_weights, num_codebooks=K, quantize="int8"),
        )

    for ours, through_floats in zip(models(keep_int8=True), models(keep_int8=False), strict=True):
        assert ours.proto == through_floats.proto
        assert ours.weights.keys() == through_floats.weights.keys()
        assert all((array == through_floats.weights[name]).all() for name, array in ours.weights.items())


@vectors_per_frame
def test_a_file_with_8_bit_weights_is_computed_with_as_it_is_stored(tmp_path: Path, vectors: int):
    config = stt_config(codec="whisper", decoder=True, vectors=vectors)
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(b"a tokenizer")
    save_checkpoint(Checkpoint(config, *random_model(config), tokenizer), tmp_path / "out", "kyutai", quantize=8)
    read = load_checkpoint(tmp_path / "out")
    assert read.config.lm == config.lm
    model = lm_model(config.lm, read.lm, {}, quantize="int8")
    packed = [array for array in model.weights.values() if array.dtype == np.uint8]
    rows = {row.tobytes() for array in packed for row in array}
    stored = read_tensors(tmp_path / "out" / read.config.files.lm)
    layers = [array for name, array in stored.items() if re.match(r"transformer\.(layers|spread)\..*weight$", name)]
    matrices = [array for array in layers if array.dtype == np.int8]
    assert len(matrices) == 10 * config.lm.transformer.num_layers + (vectors > 1)
    for matrix in matrices:
        padded = np.pad(matrix, [(0, 0), (0, -matrix.shape[1] % BLOCK[8])])
        assert {(row.astype(np.int16) + 128).astype(np.uint8).tobytes() for row in padded} <= rows
    text_T, codes_TK = tokens(config.lm)
    exact = feed(streams(config.lm), text_T, codes_TK)
    session = open_session(model, threads=1)
    stored = text_streams(config.lm, session, 1, np.zeros((1, config.lm.num_codebooks), np.int64))
    assert (
        similarity(feed(stored, text_T, codes_TK), exact) > 0.99
    )  # tables, scores of ages and prefix are rounded, too


def test_a_runner_of_this_model_has_one_delay():
    config = stt_config(codec="whisper", decoder=True)
    runner = OnnxRunner(config, *random_model(config), threads=1)
    with pytest.raises(ConfigError, match="one delay"):
        runner.delay_frames_of(1.0)
    assert isinstance(runner.lm, DecoderStreams)
