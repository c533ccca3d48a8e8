"""Whisper's decoder streams as the PyTorch one computes the whole, however many tokens and frames came before."""

from __future__ import annotations

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="MLX is not installed: pip install 'slipstream-stt[mlx]'")

from tests.models import decoder_lm_config, random_weights  # noqa: E402

from slipstream.backends.mlx.build import build_lm  # noqa: E402
from slipstream.model.config import PAD_ID, WORD_ID  # noqa: E402
from slipstream.model.names import lm_shapes  # noqa: E402

CONFIG = decoder_lm_config()
vectors_per_frame = pytest.mark.parametrize("vectors", [1, 4])


def tokens(steps: int, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Initial tokens, then random ones, half of them PAD or WORD: text `[B, T]` and audio `[B, K, T]`."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, CONFIG.text_vocab, (batch, steps))
    text = np.where(rng.random(text.shape) < 0.4, rng.choice([PAD_ID, WORD_ID], text.shape), text)
    audio = rng.integers(0, CONFIG.audio_vocab, (batch, CONFIG.num_codebooks, steps))
    text[:, 0], audio[..., 0] = CONFIG.text_initial_id, CONFIG.audio_initial_id
    return text, audio


def stream(text_BT: np.ndarray, audio_BKT: np.ndarray, start: int = 0, vectors: int = 1, **options) -> np.ndarray:
    """Text logits `[B, T, V]` of a stream, `start` tokens and frames after its beginning."""
    config = decoder_lm_config(vectors)
    lm = build_lm(config, random_weights(lm_shapes(config)), **options)
    state, condition = lm.init_state(len(text_BT)), lm.condition({})
    state["position"] = state["position"] + start
    step = mx.compile(lambda text, audio, state, at: lm(text, audio, state, at, condition))
    logits = []
    for t in range(text_BT.shape[1]):
        at = lm.transformer.locate(np.full(len(text_BT), start + t))
        hidden, state = step(mx.array(text_BT[:, t]), mx.array(audio_BKT[..., t]), state, at)
        mx.eval(hidden, state)
        logits.append(lm.text_logits(hidden).astype(mx.float32))
    return np.array(mx.stack(logits, axis=1))


@vectors_per_frame
def test_logits_of_200_steps_are_the_offline_ones(vectors: int):
    torch = pytest.importorskip("torch", reason="the offline forward is the PyTorch model's")
    from slipstream.nn.build import build_lm as build_torch_lm

    text, audio = tokens(200)
    config = decoder_lm_config(vectors)
    reference = build_torch_lm(config, random_weights(lm_shapes(config)))
    with torch.inference_mode():
        logits = reference.text_logits(reference(torch.from_numpy(text), torch.from_numpy(audio))[0]).numpy()
    np.testing.assert_allclose(stream(text, audio, vectors=vectors), logits, atol=1e-3)
    assert logits.std() > 1, "logits that hardly vary would prove little"


@vectors_per_frame
def test_beyond_numbers_of_32_bits_the_logits_are_those_of_a_fresh_stream(vectors: int):
    # After layers * context positions the output depends on that window alone, and learnt positions repeat after 9.
    text, audio = tokens(60)
    fresh, late = stream(text, audio, vectors=vectors), stream(text, audio, start=9 * 10**9, vectors=vectors)
    assert not np.allclose(late[:, 0], fresh[:, 0]), "the empty columns count as seen: the start must differ"
    np.testing.assert_allclose(late[:, 45:], fresh[:, 45:], atol=1e-3)


def test_bfloat16_stays_near_float32():
    text, audio = tokens(30)
    whole = stream(text, audio)
    difference = np.linalg.norm(stream(text, audio, dtype="bfloat16") - whole) / np.linalg.norm(whole)
    assert 1e-4 < difference < 0.05
