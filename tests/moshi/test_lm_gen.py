"""`LMGen`: its first step sees the initial tokens, its slots are alone, its hooks rule, and misuse is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.models import lm_config, random_weights  # noqa: E402

from slipstream.model.names import lm_shapes  # noqa: E402
from slipstream.moshi import LMGen, LMModel  # noqa: E402
from slipstream.moshi.conditioners import ConditionAttributes  # noqa: E402
from slipstream.moshi.run_inference import get_condition_tensors  # noqa: E402
from slipstream.nn.build import build_lm  # noqa: E402

STEPS = 30


def make(condition_values=None, **changes) -> LMModel:
    config = lm_config(**changes)
    return LMModel(build_lm(config, random_weights(lm_shapes(config))), condition_values).eval()


@pytest.fixture(scope="module")
def lm() -> LMModel:
    return make()


@pytest.fixture(scope="module")
def codes(lm) -> torch.Tensor:
    """Audio tokens for three slots, `[3, n_q, STEPS]`."""
    return torch.randint(0, lm.card, (3, lm.n_q, STEPS), generator=torch.Generator().manual_seed(5))


def run(lm_gen: LMGen, codes: torch.Tensor) -> torch.Tensor:
    """Text tokens `[B, STEPS]`."""
    with lm_gen.streaming(codes.shape[0]):
        return torch.cat([lm_gen.step(frame)[:, 0] for frame in codes.split(1, dim=-1)], dim=-1)


def test_generation_is_the_greedy_path_through_the_offline_model(lm, codes):
    text = run(LMGen(lm, use_sampling=False), codes)
    # Position 0 holds the initial tokens in place of the first frame; each later one, its own frame.
    first_text, first_audio = lm.lm.initial_tokens(3)
    sequence = torch.cat([torch.cat([first_text, text[:, :-1]], dim=1)[:, None], codes], dim=1)
    sequence[:, 1:, :1] = first_audio
    _, logits = lm.forward_text(sequence, lm.lm.condition()[:, None])
    assert logits[:, 0].argmax(dim=-1).equal(text)
    assert len(text.unique()) > 8, "tokens that hardly vary would prove little"


def test_the_first_frame_is_not_processed_unless_passed_twice(lm, codes):
    other = codes.clone()
    other[:, :, 0] = 0
    lm_gen = LMGen(lm, use_sampling=False)
    assert run(lm_gen, codes).equal(run(lm_gen, other))
    twice, other_twice = (torch.cat([x[..., :1], x], dim=-1) for x in (codes, other))
    assert not run(lm_gen, twice).equal(run(lm_gen, other_twice))


def test_paused_and_reset_slots(lm, codes):
    lm_gen = LMGen(lm, use_sampling=False)
    expected = run(lm_gen, codes)
    with lm_gen.streaming(3):
        for t in range(10):
            lm_gen.step(codes[..., t : t + 1])
        lm_gen.set_exec_mask(torch.tensor([True, False, True]))
        lm_gen.reset_streaming(torch.tensor([True, False, False]))
        # Slot 0 is reset, slot 1 is paused and can have any input, slot 2 continues.
        for t in range(10, 20):
            given = torch.stack([codes[0, :, t - 10], torch.full_like(codes[1, :, t], 10**9), codes[2, :, t]])
            text = lm_gen.step(given[..., None])[:, 0, 0]
            assert text.tolist() == [expected[0, t - 10], lm.ungenerated_token_id, expected[2, t]]
        lm_gen.reset_streaming(torch.tensor([False, False, True]))
        lm_gen.set_exec_mask(torch.tensor([False, True, True]))
        for t in range(10, 20):
            given = torch.stack([codes[0, :, 0], codes[1, :, t], codes[2, :, t - 10]])
            text = lm_gen.step(given[..., None])[:, 0, 0]
            assert text.tolist() == [lm.ungenerated_token_id, expected[1, t], expected[2, t - 10]]


def test_reset_lets_a_paused_slot_advance(lm, codes):
    lm_gen = LMGen(lm, use_sampling=False)
    with lm_gen.streaming(3):
        lm_gen.set_exec_mask(torch.zeros(3, dtype=torch.bool))
        lm_gen.reset_streaming(torch.tensor([False, True, False]))
        text = lm_gen.step(codes[..., :1])[:, 0, 0]
    assert (text == lm.ungenerated_token_id).tolist() == [True, False, True]


def test_two_generators_share_one_model(lm, codes):
    expected = run(LMGen(lm, use_sampling=False), codes)
    one, other = LMGen(lm, use_sampling=False), LMGen(lm, use_sampling=False)
    with one.streaming(3), other.streaming(1):
        for t in range(STEPS):
            assert one.step(codes[..., t : t + 1])[:, 0, 0].equal(expected[:, t])
            assert other.step(codes[1:2, :, t : t + 1])[:, 0, 0].equal(expected[1:2, t])


def test_hooks_change_the_generated_tokens_and_those_read_next(lm, codes):
    def forbid(logits: torch.Tensor) -> None:
        assert logits.shape == (3, 1, 1, lm.text_card)
        logits[..., 10:] = -torch.inf

    heard = []
    lm_gen = LMGen(lm, use_sampling=False, on_text_logits_hook=forbid, on_text_hook=lambda x: heard.append(x.clone()))
    text = run(lm_gen, codes)
    assert int(text.max()) < 10
    assert torch.stack(heard, dim=1).equal(text)

    forced = torch.randint(0, lm.text_card, (STEPS, 3))
    steps = iter(forced)
    fed = []
    lm_gen = LMGen(
        lm,
        use_sampling=False,
        on_text_logits_hook=lambda x: fed.append(x[:, 0, 0].clone()),
        on_text_hook=lambda tokens: tokens.copy_(next(steps)),
    )
    assert run(lm_gen, codes).equal(forced.T)
    first_text, first_audio = lm.lm.initial_tokens(3)
    sequence = torch.cat([torch.cat([first_text, forced.T[:, :-1]], dim=1)[:, None], codes], dim=1)
    sequence[:, 1:, :1] = first_audio
    _, logits = lm.forward_text(sequence, lm.lm.condition()[:, None])
    torch.testing.assert_close(torch.stack(fed, dim=1), logits[:, 0], atol=1e-4, rtol=1e-4)


def test_extra_heads_are_probabilities(lm, codes):
    lm_gen = LMGen(lm, use_sampling=False)
    with lm_gen.streaming(3):
        text, heads = lm_gen.step_with_extra_heads(codes[..., :1])
    assert text.shape == (3, 1, 1)
    assert [head.shape for head in heads] == [(3, 1, 6)] * 4
    torch.testing.assert_close(torch.stack(heads).sum(dim=-1), torch.ones(4, 3, 1))
    hidden = torch.randn(3, 1, lm.dim)
    scores = torch.stack([head(hidden) for head in lm.extra_heads], dim=2)
    torch.testing.assert_close(scores, lm.lm.pause_logits(hidden))
    assert make(pause_heads=0).extra_heads == []


def test_sampling_draws_and_greedy_does_not(lm, codes):
    greedy = run(LMGen(lm, use_sampling=False), codes)
    assert run(LMGen(lm, temp=0, temp_text=0.0), codes).equal(greedy)
    assert run(LMGen(lm, temp_text=1.0, top_k_text=1), codes).equal(greedy)
    assert not run(LMGen(lm, temp_text=2.0, top_k_text=0), codes).equal(greedy)


def test_conditions_reach_the_model(codes):
    lm = make({"delay": 2.0})
    default = run(LMGen(lm, use_sampling=False), codes)
    config = get_condition_tensors("stt", lm, batch_size=3)
    assert run(LMGen(lm, use_sampling=False, condition_tensors=config), codes).equal(default)
    attributes = [ConditionAttributes(text={"delay": value}) for value in (2.0, None, -7.0)]
    own = lm.condition_provider.prepare_and_provide(attributes)
    assert own["delay"].mask[:, 0].tolist() == [True, False, True]
    mixed = run(LMGen(lm, use_sampling=False, condition_tensors=own), codes)
    assert mixed[0].equal(default[0])
    assert mixed[1].equal(run(LMGen(make(), use_sampling=False), codes)[1])
    assert not mixed[2].equal(default[2])


def test_conditions_that_the_model_does_not_have(lm):
    with pytest.raises(ValueError, match="unknown condition genre; this model has: delay"):
        lm.condition_provider.prepare([ConditionAttributes(text={"genre": "news"})])
    plain = make(conditioners=())
    assert plain.condition_provider is None
    assert get_condition_tensors("stt", plain, 2) == {}
    with pytest.raises(ValueError, match="conditions delay: this model has none"):
        LMGen(plain, condition_tensors=get_condition_tensors("stt", lm, 2))
    with pytest.raises(ValueError, match="model_type='hibiki'"):
        get_condition_tensors("hibiki", lm, 2)


@pytest.mark.parametrize("arguments", [{"cfg_coef": 2.0}, {"cfg_is_no_text": True}, {"cfg_is_masked_until": [3]}])
def test_guidance_is_refused(lm, arguments):
    with pytest.raises(ValueError, match=r"classifier-free guidance .* leave cfg_coef at 1"):
        LMGen(lm, **arguments)


def test_misuse_is_refused(lm, codes):
    with pytest.raises(ValueError, match="on_audio_hook would never be called"):
        LMGen(lm, on_audio_hook=print)
    with pytest.raises(ValueError, match="training mode: call its eval"):
        LMGen(make().train())
    lm_gen = LMGen(lm)
    with pytest.raises(RuntimeError, match="LMGen is not streaming: call it inside"):
        lm_gen.step(codes[..., :1])
    with lm_gen.streaming(3):
        with pytest.raises(ValueError, match=r"tokens of shape \[3, 5, 2\]: expected \[3, 5, 1\]"):
            lm_gen.step(codes[..., :2])
        with pytest.raises(ValueError, match=r"tokens of shape \[3, 4, 1\]: expected \[3, 5, 1\]"):
            lm_gen.step(codes[:, :4, :1])
        with pytest.raises(ValueError, match="depformer_replace_tokens"):
            lm_gen.step(codes[..., :1], codes)
        more = torch.cat([codes, codes], dim=1)
        assert lm_gen.step(more[..., :1]).shape == (3, 1, 1), "rows beyond n_q are ignored"


@pytest.mark.parametrize("bad", [-2, 33])
def test_check_refuses_tokens_that_no_stream_can_have(lm, codes, bad):
    lm_gen = LMGen(lm, check=True)
    wrong = codes.clone()
    wrong[1, 2, 1] = bad
    with lm_gen.streaming(3):
        lm_gen.step(wrong[..., :1])
        with pytest.raises(ValueError, match=r"audio tokens from .* expected -1 to 32"):
            lm_gen.step(wrong[..., 1:2])
