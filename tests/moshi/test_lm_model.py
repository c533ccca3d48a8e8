"""`LMModel`: its embeddings and its training pass agree with generation."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.models import lm_config, random_model, stt_config  # noqa: E402

from slipstream.moshi import LMModel  # noqa: E402
from slipstream.nn.build import build_lm  # noqa: E402


@pytest.fixture
def model() -> LMModel:
    lm, _ = random_model(stt_config())
    return LMModel(build_lm(lm_config(), lm)).eval()


def test_scores_are_aligned_with_the_codes(model: LMModel) -> None:
    torch.manual_seed(0)
    T = 9
    text = torch.randint(0, model.text_card, (2, 1, T))
    audio = torch.randint(0, model.card, (2, model.n_q, T))
    text[1, 0, 4] = model.zero_token_id
    codes = torch.cat([text, audio], dim=1)
    with torch.no_grad():
        out = model(codes)
    assert out.logits.shape == (2, 0, T, model.card)
    assert out.mask.shape == (2, 0, T)
    assert out.text_logits.shape == (2, 1, T, model.text_card)
    assert out.text_mask.all(-1).tolist() == [[True], [False]]
    text0, audio0 = model.lm.initial_tokens(2)
    text_BT, audio_BKT = torch.cat([text0, text[:, 0, :-1]], 1), torch.cat([audio0, audio[..., :-1]], 2)
    hidden, _ = model.lm(text_BT, audio_BKT, condition_BD=model.lm.condition())
    torch.testing.assert_close(out.text_logits[:, 0], model.lm.text_logits(hidden))
    # A code changes no score at or before its own frame.
    changed = codes.clone()
    changed[:, :, 5] = (changed[:, :, 5] + 1) % model.card
    with torch.no_grad():
        other = model(changed)
    torch.testing.assert_close(out.text_logits[:, :, :6], other.text_logits[:, :, :6])
    assert not torch.allclose(out.text_logits[:, :, 6:], other.text_logits[:, :, 6:])
    with pytest.raises(ValueError, match=r"expected \[B, 6, T\]"):
        model(codes[:, 1:])


def test_embeddings_of_each_stream_sum_to_the_input(model: LMModel) -> None:
    tokens = torch.tensor([[1, model.zero_token_id, 3]])
    assert len(model.emb) == model.n_q
    parts = [emb(tokens) for emb in model.emb]
    assert all(part.shape == (1, 3, model.dim) and not part[0, 1].any() for part in parts)
    torch.testing.assert_close(sum(parts), model.lm.audio_emb(tokens.expand(model.n_q, 3)[None]))
    assert model.text_emb(tokens).shape == (1, 3, model.dim)
    assert model.emb[0].weight.shape == (model.card + 1, model.dim)
    assert model.text_linear.weight.shape == (model.text_card, model.dim)
