"""Whisper's decoder: a stream is the whole sequence, a repeated step replaces, positions may start anywhere."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.models import decoder_lm_config, random_weights  # noqa: E402

from slipstream.model.config import PAD_ID, WORD_ID, WhisperDecoderConfig  # noqa: E402
from slipstream.model.names import lm_shapes  # noqa: E402
from slipstream.nn.build import build_lm  # noqa: E402
from slipstream.nn.lm import LM  # noqa: E402
from slipstream.nn.ring import RingFormat  # noqa: E402
from slipstream.nn.state import Savepoints, commit  # noqa: E402

A, B = 5, 6  # tokens of text


vectors_per_frame = pytest.mark.parametrize("vectors", [1, 4])


def make(audio_context: int = 7, vectors: int = 1, **changes) -> LM:
    whisper = WhisperDecoderConfig(audio_context=audio_context, prefix=2, num_positions=11, vectors=vectors)
    config = decoder_lm_config(whisper=whisper, **changes)
    weights = random_weights(lm_shapes(config))
    return build_lm(config, weights)


def tokens(lm: LM, steps: int, batch: int = 2):
    """Initial tokens, then random ones, about half of them PAD or WORD."""
    generator = torch.Generator().manual_seed(0)
    text, audio = lm.initial_tokens(batch)
    more = torch.randint(0, lm.config.text_vocab, (batch, steps - 1), generator=generator)
    waits = torch.tensor([PAD_ID, WORD_ID])[torch.randint(0, 2, more.shape, generator=generator)]
    more = torch.where(torch.rand(more.shape, generator=generator) < 0.4, waits, more)
    codes = torch.randint(0, lm.config.audio_vocab, (batch, lm.config.num_codebooks, steps - 1), generator=generator)
    return torch.cat([text, more], dim=1), torch.cat([audio, codes], dim=2)


def stream(lm: LM, text, audio, state=None):
    """The output of each step, and the state, which is updated in place."""
    state = lm.init_state(len(text)) if state is None else state
    outputs = []
    for t in range(text.shape[1]):
        hidden, update = lm(text[:, t : t + 1], audio[..., t : t + 1], state)
        commit(state, update, torch.ones(len(text), dtype=torch.bool))
        outputs.append(hidden)
    return torch.cat(outputs, dim=1), state


@torch.inference_mode()
@vectors_per_frame
def test_streaming_equals_offline_past_the_wraps(vectors: int):
    lm = make(vectors=vectors)
    text, audio = tokens(lm, 80)
    assert ((text != PAD_ID) & (text != WORD_ID)).sum(dim=1).min() > 20, "the positions must repeat"
    whole, state = lm(text, audio)
    assert state is None
    torch.testing.assert_close(stream(lm, text, audio)[0], whole, atol=5e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_step_without_new_text_replaces_the_step_before():
    lm = make(audio_context=1)  # so that a frame reaches later steps through the text only
    _, audio = tokens(lm, 7, batch=1)
    text = torch.tensor([[lm.config.text_initial_id, A, PAD_ID, WORD_ID, B, PAD_ID, A]])
    plain, _ = lm(text, audio)
    for step, reaches in ((1, False), (2, False), (3, True)):  # of text A, the last step is seen
        changed = audio.clone()
        changed[..., step] = (changed[..., step] + 1) % lm.config.audio_vocab
        later = (lm(text, changed)[0] - plain)[0, 4:].abs().amax(dim=-1)
        assert (later > 1e-3).all() if reaches else (later == 0).all()
        torch.testing.assert_close(stream(lm, text, changed)[0], lm(text, changed)[0], atol=5e-5, rtol=1e-4)


@torch.inference_mode()
def test_pad_and_the_start_of_a_word_differ_and_hold_the_last_text():
    lm = make()
    _, audio = tokens(lm, 3, batch=4)
    audio = audio[:1].expand(4, -1, -1)
    first = lm.config.text_initial_id
    text = torch.tensor([[first, A, PAD_ID], [first, A, WORD_ID], [first, B, PAD_ID], [first, A, A]])
    last = lm(text, audio)[0][:, -1]
    assert (torch.cdist(last, last) + torch.eye(4) > 0.1).all()


@torch.inference_mode()
def test_positions_start_at_the_first_number_and_repeat():
    lm = make()
    text, audio = tokens(lm, 30)
    embedded = lm.audio_emb(audio)
    plain, _ = lm.embedded(text, embedded)
    repeated, _ = lm.embedded(text, embedded, first_B=torch.tensor([9, 18]))
    torch.testing.assert_close(repeated, plain)
    moved, _ = lm.embedded(text, embedded, first_B=torch.tensor([0, 3]))
    torch.testing.assert_close(moved[0], plain[0])
    table = lm.transformer.positions
    table[2:] = table[2:].roll(-3, dims=0)
    torch.testing.assert_close(moved[1], lm.embedded(text, embedded)[0][1])
    assert (moved[1] - plain[1]).abs().max() > 0.1


@torch.inference_mode()
@pytest.mark.parametrize("align", [1, 10])
def test_a_ring_of_any_capacity_holds_the_vectors(align: int):
    lm = make(vectors=3)
    text, audio = tokens(lm, 80)
    state = lm.init_state(2, rings=RingFormat(align=align))
    assert state["audio"]["ring"].capacity == {1: 21, 10: 30}[align]
    torch.testing.assert_close(stream(lm, text, audio, state)[0], lm(text, audio)[0], atol=5e-5, rtol=1e-4)


@torch.inference_mode()
def test_equal_vectors_of_a_frame_are_as_one():
    lm, four = make(), make(vectors=4)
    weights = lm.state_dict()
    weights["transformer.spread.weight"] = torch.eye(24).repeat(4, 1)
    weights["transformer.spread.bias"] = torch.zeros(4 * 24)
    four.load_state_dict(weights)
    text, audio = tokens(lm, 30)
    torch.testing.assert_close(four(text, audio)[0], lm(text, audio)[0], atol=5e-5, rtol=1e-4)
    # Another third vector counts, for as long as its frame is seen.
    four.transformer.spread.weight[48:72] *= -1
    assert (four(text, audio)[0] - lm(text, audio)[0]).abs().amax(dim=(0, 2)).min() > 1e-3


@torch.inference_mode()
@vectors_per_frame
def test_a_frame_counts_by_its_age(vectors: int):
    lm, narrow = make(vectors=vectors), make(audio_context=3, vectors=vectors)
    for layer, other in zip(lm.transformer.layers, narrow.transformer.layers, strict=True):
        layer.age[:, :3] = other.age
        layer.age[:, 3:] = -1e4
    narrow.load_state_dict({k: v for k, v in lm.state_dict().items() if not k.endswith(".age")}, strict=False)
    text, audio = tokens(lm, 30)
    torch.testing.assert_close(stream(lm, text, audio)[0], lm(text, audio)[0], atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(lm(text, audio)[0], narrow(text, audio)[0])


@vectors_per_frame
def test_everything_learns_and_gradients_do_not_change_the_output(vectors: int):
    lm = make(vectors=vectors)
    text, audio = tokens(lm, 30)
    plain, _ = lm(text, audio)
    lm.requires_grad_()
    hidden, _ = lm(text, audio)
    torch.testing.assert_close(hidden, plain, atol=5e-5, rtol=1e-4)
    (lm.text_logits(hidden).square().mean() + lm.pause_logits(hidden).square().mean()).backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert all(layer.age.grad.abs().amin() > 0 for layer in lm.transformer.layers), "every age of every head"


@torch.inference_mode()
@pytest.mark.parametrize("before", [5, 40])
@vectors_per_frame
def test_a_savepoint_takes_back_what_later_steps_overwrite(before: int, vectors: int):
    shape = decoder_lm_config().transformer.model_copy(update={"context": 12})
    lm = make(audio_context=15, vectors=vectors, transformer=shape)
    text, audio = tokens(lm, before + 30)
    whole, _ = lm(text, audio)
    _, state = stream(lm, text[:, :before], audio[..., :before])
    savepoints = Savepoints(state, 2, steps=4)
    for said in ([A] * 4, [PAD_ID] * 4, [PAD_ID, B, WORD_ID, A]):
        saved = [savepoints.save(state, slot) for slot in range(2)]
        stream(lm, torch.tensor([said] * 2), (audio[..., :4] + 1) % lm.config.audio_vocab, state)
        for one in saved:
            savepoints.restore(state, one)
        del saved, one
    continued, _ = stream(lm, text[:, before:], audio[..., before:], state)
    torch.testing.assert_close(continued, whole[:, before:], atol=5e-5, rtol=1e-4)


def test_it_advances_by_one_step_at_a_time():
    with pytest.raises(ValueError, match="one position at a time, not by 2"):
        make().init_state(1, max_step=2)


@vectors_per_frame
def test_its_tensors_are_the_canon(vectors: int):
    config = decoder_lm_config(vectors)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LM(config).state_dict().items()}
    assert shapes == lm_shapes(config)
