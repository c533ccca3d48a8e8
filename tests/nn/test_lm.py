"""The LM: streaming equals offline, a million frames in is as good as fresh, counts are the published ones."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.models import lm_config, random_weights  # noqa: E402

from slipstream.checkpoints.presets import PRESETS  # noqa: E402
from slipstream.model.config import ConditionerConfig  # noqa: E402
from slipstream.model.names import lm_shapes  # noqa: E402
from slipstream.model.numerics import NO_TOKEN  # noqa: E402
from slipstream.nn.build import build_lm  # noqa: E402
from slipstream.nn.lm import LM  # noqa: E402


def make(**changes) -> LM:
    config = lm_config(**changes)
    return build_lm(config, random_weights(lm_shapes(config)))


def tokens(lm: LM, frames: int, batch: int = 2):
    """Initial tokens, then random ones."""
    text, audio = lm.initial_tokens(batch)
    text = torch.cat([text, torch.randint(0, lm.config.text_vocab, (batch, frames))], dim=1)
    codes = torch.randint(0, lm.config.audio_vocab, (batch, lm.config.num_codebooks, frames))
    return text, torch.cat([audio, codes], dim=2)


def stream(lm: LM, text, audio, state):
    outputs = []
    for t in range(text.shape[1]):
        hidden, state = lm(text[:, t : t + 1], audio[..., t : t + 1], state)
        outputs.append(hidden)
    return torch.cat(outputs, dim=1)


def test_streaming_equals_offline_past_the_wrap():
    lm = make()
    text, audio = tokens(lm, 40)
    whole, state = lm(text, audio)
    assert state is None
    torch.testing.assert_close(stream(lm, text, audio, lm.init_state(2)), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("start", [1_000_000, 10**9 + 7])
def test_a_million_frames_in_the_next_logits_are_those_of_a_fresh_stream(start):
    # After layers * context positions the output depends on that window alone.
    lm = make()
    text, audio = tokens(lm, 60)
    fresh = lm.text_logits(stream(lm, text, audio, lm.init_state(2)))
    state = lm.init_state(2)
    state["position"] += start
    late = lm.text_logits(stream(lm, text, audio, state))
    assert not torch.allclose(late[:, 0], fresh[:, 0]), "the empty columns count as seen: the start must differ"
    torch.testing.assert_close(late[:, 20:], fresh[:, 20:], atol=2e-4, rtol=1e-3)


def test_memory_of_a_stream_does_not_grow():
    lm = make()
    state = lm.init_state(1)
    sizes = set()
    for _ in range(3):
        text, audio = tokens(lm, 10, batch=1)
        for t in range(11):
            _, state = lm(text[:, t : t + 1], audio[..., t : t + 1], state)
        sizes.add(sum(buffer.numel() for buffer in state["ring"].tensors))
    assert len(sizes) == 1


def test_no_token_embeds_as_zero():
    lm = make()
    audio = torch.randint(0, 32, (1, 5, 3))
    missing = audio.clone()
    missing[:, 2] = NO_TOKEN
    without = lm.audio_emb(audio) - torch.nn.functional.embedding(audio[:, 2], lm.audio_emb.weight[2])
    torch.testing.assert_close(lm.audio_emb(missing), without)
    assert not lm.text_emb(torch.tensor([[NO_TOKEN]])).any()


def test_embedding_gradients_reach_used_rows_only():
    lm = make().requires_grad_()
    lm.audio_emb(torch.full((1, 5, 1), 7)).sum().backward()
    assert lm.audio_emb.weight.grad[:, 7].eq(1).all()
    assert lm.audio_emb.weight.grad.sum() == 5 * 42


def test_condition_is_learnt_padding_unless_given():
    lm = make()
    torch.testing.assert_close(lm.condition()[0], lm.conditioners["delay"].learnt_padding)
    half, two = lm.condition({"delay": 0.5}), lm.condition({"delay": 2.0})
    assert half.shape == (1, 42)
    assert not torch.allclose(half, two)
    text, audio = tokens(lm, 3)
    assert not torch.allclose(lm(text, audio, None, half)[0], lm(text, audio, None, two)[0])


def test_a_batch_of_conditions_is_the_conditions_of_the_batch():
    lm = make()
    both = lm.condition({"delay": torch.tensor([0.5, 2.0])})
    torch.testing.assert_close(both, torch.cat([lm.condition({"delay": 0.5}), lm.condition({"delay": 2.0})]))


def test_unknown_conditions_and_values_are_named():
    lm = make()
    with pytest.raises(ValueError, match="unknown condition dealy; this model has: delay"):
        lm.condition({"dealy": 1.0})
    with pytest.raises(ValueError, match="expected a number"):
        lm.condition({"delay": "long"})
    table = make(
        conditioners=(ConditionerConfig(name="lang", kind="lut", dim=4, num_bins=2, possible_values=("en", "fr")),)
    )
    assert not torch.allclose(table.condition({"lang": "en"}), table.condition({"lang": "fr"}))
    with pytest.raises(ValueError, match="expected one of en, fr"):
        table.condition({"lang": "de"})


def test_a_model_without_pause_heads_returns_no_pause_probabilities():
    lm = make(pause_heads=0)
    assert lm.pause_logits(torch.zeros(2, 3, 42)).shape == (2, 3, 0, 6)
    assert make().pause_logits(torch.zeros(2, 3, 42)).shape == (2, 3, 4, 6)


def test_state_dict_is_the_canon():
    config = lm_config()
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in LM(config).state_dict().items()}
    assert shapes == lm_shapes(config)


@pytest.mark.parametrize(
    ("name", "count"), [("kyutai/stt-1b-en_fr-candle", 989_253_632), ("kyutai/stt-2.6b-en", 2_617_118_720)]
)
def test_published_sizes_build_with_their_parameter_counts(name, count):
    with torch.device("meta"):
        lm = LM(PRESETS[name].lm)
    assert sum(p.numel() for p in lm.parameters()) == count


def test_bfloat16_streams_as_offline_within_its_precision():
    config = lm_config()
    lm = build_lm(config, random_weights(lm_shapes(config)), dtype=torch.bfloat16)
    text, audio = tokens(lm, 30)
    whole, _ = lm(text, audio)
    assert whole.dtype == torch.bfloat16
    difference = (stream(lm, text, audio, lm.init_state(2)) - whole).float().norm() / whole.float().norm()
    assert difference < 0.03
