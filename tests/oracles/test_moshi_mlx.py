"""The MLX backend and the published `moshi_mlx` package: the same text tokens for the same audio tokens.

Where the two differ, the PyTorch model's offline forward, which training computes, is the reference.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="MLX is not installed: `make oracles` installs it")
nn = pytest.importorskip("mlx.nn")
torch = pytest.importorskip("torch")
pytest.importorskip("moshi_mlx", reason="the reference package moshi_mlx is not installed: `make oracles` installs it")

from moshi_mlx.models import Lm, LmConfig, LmGen  # noqa: E402
from moshi_mlx.models.mimi import Mimi as TheirMimi  # noqa: E402
from moshi_mlx.models.mimi import mimi_202407  # noqa: E402
from moshi_mlx.utils import Sampler  # noqa: E402
from tests.models import (  # noqa: E402
    codec_config,
    lm_config,
    load_checkpoint,
    noise_and_tones,
    random_model,
    random_weights,
    stt_config,
)

from slipstream.backends.mlx.build import build_codec, build_lm  # noqa: E402
from slipstream.backends.mlx.lm import LM  # noqa: E402
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from slipstream.checkpoints.kyutai import dump_kyutai  # noqa: E402
from slipstream.checkpoints.mimi import codec_table  # noqa: E402
from slipstream.checkpoints.mlx import lm_table  # noqa: E402
from slipstream.checkpoints.quantization import GROUP_SIZES  # noqa: E402
from slipstream.checkpoints.tensors import write_tensors  # noqa: E402
from slipstream.model.config import LMConfig, STTConfig  # noqa: E402
from slipstream.model.names import codec_shapes, lm_shapes  # noqa: E402
from slipstream.nn.build import build_codec as build_torch_codec  # noqa: E402
from slipstream.nn.build import build_lm as build_torch_lm  # noqa: E402

CONTEXT = 40


def config(dim: int = 256, context: int = CONTEXT) -> STTConfig:
    # Its loader takes a feed-forward width of 11/4 of the model's for granted, and 8 bits need it in groups of 64.
    transformer = lm_config().transformer.model_copy(
        update={"dim": dim, "num_heads": 4, "ffn_dim": 11 * dim // 4, "context": context}
    )
    return stt_config(transformer=transformer, conditioners=())


def their_lm(stt: STTConfig, ring: int = 4096) -> Lm:
    """Their LM for a configuration; its ring has 4096 positions unless a test makes it wrap sooner."""
    parsed = LmConfig.from_config_dict(dump_kyutai(stt))
    parsed.transformer.max_seq_len = ring
    return Lm(parsed)


def filled(model: Lm, stt: STTConfig) -> Lm:
    weights = lm_table(stt.lm).write(random_weights(lm_shapes(stt.lm)))
    return model.load_weights([(name, mx.array(array)) for name, array in weights.items()], strict=True)


def codes(config: LMConfig, frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.audio_vocab, (frames, 1, config.num_codebooks))


def our_tokens(lm: LM, codes_T1K: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Text tokens and pause probabilities `[T + 1, H]` of a stream with the given codes, number 0 first."""
    state, condition = lm.init_state(1), lm.condition({})
    text, heard = (
        mx.array([lm.config.text_initial_id]),
        np.full((1, lm.config.num_codebooks), lm.config.audio_initial_id),
    )
    tokens, pauses = [], []
    for t, following in enumerate([*codes_T1K, None]):
        hidden, state = lm(text, mx.array(heard), state, lm.transformer.locate(np.array([t])), condition)
        text, heard = mx.argmax(lm.text_logits(hidden), axis=-1), following
        tokens.append(text.item())
        pauses.append(np.array(mx.softmax(lm.pause_logits(hidden), axis=-1)[0, :, 0]))
    return tokens, np.array(pauses)


def their_tokens(model: Lm, codes_T1K: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The same of theirs, whose step returns the text that does not know yet of the codes it is given."""
    generator = LmGen(model, len(codes_T1K) + 1, text_sampler=Sampler(temp=0), audio_sampler=Sampler(temp=0))
    tokens, pauses = [], []
    for heard in [*codes_T1K, codes_T1K[-1]]:
        text, heads = generator.step_with_extra_heads(mx.array(heard.astype(np.int32)))
        tokens.append(text.item())
        pauses.append([head[0, 0, 0].item() for head in heads])
    return tokens, np.array(pauses)


# ------------------------------------------------------------------------------------------------------------- the LM


def test_the_same_text_and_pauses_for_the_same_audio_tokens():
    stt = config()
    heard = codes(stt.lm, CONTEXT - 1)
    ours, our_pauses = our_tokens(build_lm(stt.lm, random_weights(lm_shapes(stt.lm))), heard)
    theirs, their_pauses = their_tokens(filled(their_lm(stt), stt), heard)
    assert ours == theirs
    np.testing.assert_allclose(our_pauses, their_pauses, atol=1e-4)
    assert len(set(ours)) > 10, "random weights that always say the same prove nothing"


@pytest.mark.parametrize("bits", sorted(GROUP_SIZES))
def test_our_quantised_checkpoint_gives_the_same_tokens_in_theirs(bits: int, tmp_path: Path):
    stt = config()
    (tmp_path / "spm.model").write_bytes(b"")
    checkpoint = Checkpoint(stt, *random_model(stt), tmp_path / "spm.model")
    save_checkpoint(checkpoint, tmp_path / "saved", "mlx", quantize=bits)
    raw = json.loads((tmp_path / "saved" / "config.json").read_text())
    model = Lm(LmConfig.from_config_dict(raw))
    assert raw["moshi_name"].endswith(f".q{bits}.safetensors"), "by which its loader tells the number of bits"
    nn.quantize(model, bits=bits, group_size=GROUP_SIZES[bits])
    model.load_weights(str(tmp_path / "saved" / raw["moshi_name"]), strict=True)
    heard = codes(stt.lm, CONTEXT - 1)
    loaded = load_checkpoint(tmp_path / "saved", keep_quantized=True)
    assert our_tokens(build_lm(stt.lm, loaded.lm), heard)[0] == their_tokens(model, heard)[0]


@pytest.mark.parametrize("bits", sorted(GROUP_SIZES))
def test_their_quantised_checkpoint_gives_the_same_tokens_in_ours(bits: int, tmp_path: Path):
    stt = config()
    (tmp_path / "spm.model").write_bytes(b"")
    save_checkpoint(Checkpoint(stt, *random_model(stt), tmp_path / "spm.model"), tmp_path / "saved", "mlx")
    model = filled(their_lm(stt), stt)
    nn.quantize(model, bits=bits, group_size=GROUP_SIZES[bits])
    model.save_weights(str(tmp_path / "theirs.safetensors"))
    loaded = load_checkpoint(tmp_path / "saved", lm=tmp_path / "theirs.safetensors", keep_quantized=True)
    lm = build_lm(stt.lm, loaded.lm)
    assert lm.audio_emb.weight.dtype == mx.uint32
    heard = codes(stt.lm, CONTEXT - 1)
    assert our_tokens(lm, heard)[0] == their_tokens(model, heard)[0]


# ------------------------------------------------------------------------------------- where it deviates: the window


WINDOW, RING, FRAMES = 7, 24, 60


@pytest.fixture(scope="module")
def scores() -> dict[str, np.ndarray]:
    """Text logits `[T, V]` for the same tokens: streamed by both, and offline with two contexts."""
    stt = config(dim=64, context=WINDOW)
    weights = random_weights(lm_shapes(stt.lm))
    rng = np.random.default_rng(0)
    text = rng.integers(0, stt.lm.text_vocab, FRAMES)
    audio = codes(stt.lm, FRAMES)
    lm = build_lm(stt.lm, weights)
    state, ours = lm.init_state(1), []
    for t in range(FRAMES):
        at = lm.transformer.locate(np.array([t]))
        hidden, state = lm(mx.array(text[t : t + 1]), mx.array(audio[t]), state, at, lm.condition({}))
        ours.append(np.array(lm.text_logits(hidden)[0]))
    theirs: list[np.ndarray] = []

    def record(logits: Any) -> tuple[Any, Any]:
        theirs.append(np.array(logits[0, 0]))
        return mx.argmax(logits, axis=-1), logits

    model = filled(their_lm(stt, RING), stt)
    for t in range(FRAMES):
        model.sample(mx.array(text[None, t : t + 1]), [*mx.array(audio[t]).reshape(-1, 1, 1)], record, record)
    offline = {}
    for context in (WINDOW, WINDOW + 1):
        reference = build_torch_lm(config(dim=64, context=context).lm, weights)
        with torch.inference_mode():
            hidden, _ = reference(torch.from_numpy(text)[None], torch.from_numpy(audio[:, 0].T)[None])
            offline[context] = reference.text_logits(hidden)[0].numpy()
    return {
        "ours": np.array(ours),
        "theirs": np.array(theirs),
        "offline": offline[WINDOW],
        "offline, one more": offline[WINDOW + 1],
    }


def equal_frames(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.abs(left - right).max(axis=1) < 1e-3


def test_our_window_stays_that_of_the_offline_forward(scores: dict[str, np.ndarray]):
    assert equal_frames(scores["ours"], scores["offline"]).all()


def test_their_window_sees_one_position_more_than_the_context(scores: dict[str, np.ndarray]):
    # It keeps the `context` newest keys in addition to this step's own; in training a query counts as one of them.
    same = equal_frames(scores["theirs"], scores["offline"])
    assert same[:WINDOW].all()
    assert not same[WINDOW:].any()
    assert equal_frames(scores["theirs"], scores["offline, one more"])[:RING].all()


def test_their_window_is_another_once_its_ring_wraps(scores: dict[str, np.ndarray]):
    # It assumes that the newest keys are in the last columns of the ring, but from there on they can be anywhere.
    for window in ("offline", "offline, one more"):
        assert not equal_frames(scores["theirs"], scores[window])[RING:].all()
    assert equal_frames(scores["theirs"], scores["offline, one more"])[RING:].mean() < 0.5


# -------------------------------------------------------------------------------------- where it deviates: the codec


def their_mimi(folder: Path) -> TheirMimi:
    ours = codec_config()
    published = mimi_202407(ours.num_codebooks)
    transformer = dataclasses.replace(
        published.transformer,
        d_model=ours.dim,
        num_heads=ours.transformer.num_heads,
        num_layers=ours.transformer.num_layers,
        dim_feedforward=ours.transformer.ffn_dim,
        context=ours.transformer.context,
    )
    model = TheirMimi(
        dataclasses.replace(
            published,
            seanet=dataclasses.replace(published.seanet, dimension=ours.dim, nfilters=ours.num_filters),
            transformer=transformer,
            quantizer_bins=ours.codebook_size,
            quantizer_dim=ours.codebook_dim,
        )
    )
    write_tensors(folder / "mimi.safetensors", codec_table(ours).write(random_weights(codec_shapes(ours))))
    return model.load_pytorch_weights(str(folder / "mimi.safetensors"), strict=True)


def frames(count: int, seed: int = 0) -> np.ndarray:
    return noise_and_tones(count * 0.08, seed).reshape(count, 1, 1920)


def test_its_codec_is_ours_up_to_the_transformer(tmp_path: Path):
    theirs, ours = their_mimi(tmp_path), build_codec(codec_config(), random_weights(codec_shapes(codec_config())))
    state: Any = ours.encoder.init_state(1)
    for frame in frames(5):
        expected = np.array(theirs.encoder.step(mx.array(frame[None]))).swapaxes(1, 2)
        y, state = ours.encoder(mx.array(frame[..., None]), state)
        np.testing.assert_allclose(y, expected, atol=1e-4)


def test_its_codec_looks_ahead_within_a_step_and_ours_does_not(tmp_path: Path):
    # Its attention has no mask, so the first of a step's two positions sees the second.
    theirs, ours = their_mimi(tmp_path), build_codec(codec_config(), random_weights(codec_shapes(codec_config())))
    reference = build_torch_codec(codec_config(), random_weights(codec_shapes(codec_config())))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 2, 24)).astype(np.float32)
    other = x.copy()
    other[:, 1] = rng.standard_normal(24)

    def first_by_theirs(x_BTD: np.ndarray) -> np.ndarray:
        theirs.reset_all()
        return np.array(theirs.encoder_transformer(mx.array(x_BTD.swapaxes(1, 2)), theirs.encoder_cache)[0])[:, :, 0]

    def first_by_ours(x_BTD: np.ndarray) -> np.ndarray:
        transformer = ours.encoder_transformer
        rings = transformer.init_state(1, mx.float32)
        return np.array(transformer(mx.array(x_BTD), rings, transformer.locate(np.array([0])))[0])[:, 0]

    assert not np.allclose(first_by_theirs(x), first_by_theirs(other), atol=1e-2)
    with torch.inference_mode():
        offline = reference.encoder_transformer(torch.from_numpy(x))[0][:, 0].numpy()
    for input_BTD in (x, other):
        np.testing.assert_allclose(first_by_ours(input_BTD), offline, atol=1e-5)


def test_its_reset_leaves_the_tail_of_the_downsampling_and_ours_leaves_nothing(tmp_path: Path):
    theirs = their_mimi(tmp_path)

    def first_code(seed: int) -> list[int]:
        return np.array(theirs.encode_step(mx.array(frames(1, seed)))).ravel().tolist()

    fresh = first_code(seed=0)
    first_code(seed=1)
    theirs.reset_state()
    assert first_code(seed=0) != fresh
    theirs.reset_all()
    assert first_code(seed=0) == fresh


@pytest.mark.parametrize("samples", [7, 333, 1920])
def test_its_resets_pass_over_the_residual_adders_which_hold_nothing(tmp_path: Path, samples: int):
    # A block's two sides would wait there for each other, but its convolutions give a sample for each they get.
    theirs = their_mimi(tmp_path)
    audio = noise_and_tones(0.1)[:2000]
    for start in range(0, len(audio), samples):
        mx.eval(theirs.encoder.step(mx.array(audio[start : start + samples])[None, None]))
    adders = [residual.streaming_add for layer in theirs.encoder.layers for residual in layer.residuals]
    assert len(adders) == 4
    assert all(adder._lhs is None and adder._rhs is None for adder in adders)
