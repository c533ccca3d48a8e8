"""Layers: a stream cut anywhere equals the whole sequence in one call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from slipstream.model.config import TransformerConfig  # noqa: E402
from slipstream.nn.layers import (  # noqa: E402
    CausalConv1d,
    CausalConvTranspose1d,
    RMSNorm,
    Transformer,
    attention_mask,
    rotate,
    rotations,
)


def cuts(total: int, unit: int = 1) -> st.SearchStrategy[list[int]]:
    """Ways to cut `total` units into pieces."""
    return st.lists(st.integers(1, total - 1), max_size=total - 1, unique=True).map(
        lambda edges: [unit * (b - a) for a, b in zip([0, *sorted(edges)], [*sorted(edges), total], strict=True)]
    )


@given(st.sampled_from([1, 3, 4, 7]), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.booleans(), st.data())
def test_convolution_streams_as_offline(kernel, stride, dilation, replicate, data):
    if (kernel - 1) * dilation + 1 < stride:
        return
    conv = CausalConv1d(3, 5, kernel, stride=stride, dilation=dilation, replicate=replicate)
    x = torch.randn(2, 3, 12 * stride)
    whole, _ = conv(x)
    state, pieces = conv.init_state(2), []
    for piece in x.split(data.draw(cuts(12, stride)), dim=-1):
        y, state = conv(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, -1), whole)
    assert whole.shape[-1] == 12


@given(st.sampled_from([(2, 1), (4, 2), (16, 8), (7, 3)]), st.booleans(), st.booleans(), cuts(10))
def test_transposed_convolution_streams_as_offline(kernel_stride, bias, grouped, pieces):
    kernel, stride = kernel_stride
    conv = CausalConvTranspose1d(4, 4, kernel, stride=stride, groups=4 if grouped else 1, bias=bias)
    x = torch.randn(2, 4, 10)
    whole, _ = conv(x)
    assert whole.shape[-1] == 10 * stride
    state, outputs = conv.init_state(2), []
    for piece in x.split(pieces, dim=-1):
        y, state = conv(piece, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, -1), whole)


def small_transformer(context: int = 5) -> Transformer:
    config = TransformerConfig(
        dim=12, num_heads=2, num_layers=2, ffn_dim=20, context=context, max_period=100.0, norm="rms_norm", gated=True
    )
    return Transformer(config).eval()


@given(st.lists(st.integers(1, 3), min_size=8, max_size=20))
def test_transformer_streams_as_offline_past_the_wrap(steps):
    transformer = small_transformer()
    x = torch.randn(2, sum(steps), 12)
    whole, _ = transformer(x)
    state, outputs = transformer.init_state(2, max_step=3), []
    for piece in x.split(steps, dim=1):
        y, state = transformer(piece, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, atol=1e-5, rtol=1e-4)


def test_a_step_longer_than_the_state_was_made_for_is_refused():
    transformer = small_transformer()
    with pytest.raises(ValueError, match="a step of 3 positions, but the state was made for 2"):
        transformer(torch.randn(1, 3, 12), transformer.init_state(1, max_step=2))


def test_checkpointing_changes_no_gradient():
    transformer = small_transformer().train()
    x = torch.randn(2, 9, 12)
    grads = []
    for checkpointing in (False, True):
        transformer.checkpointing = checkpointing
        transformer.zero_grad()
        transformer(x)[0].square().sum().backward()
        grads.append([p.grad.clone() for p in transformer.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_mask_shows_each_query_its_last_positions_and_nothing_unwritten():
    query = torch.tensor([[4, 5]])
    keys = torch.tensor([[-1, 5, 2, 3, 4]])
    seen = attention_mask(query, keys, context=3, dtype=torch.float32)[0, 0] == 0
    assert seen.tolist() == [[False, False, True, True, True], [False, True, False, True, True]]


@pytest.mark.parametrize("start", [0, 1_000_000, 10**9])
def test_rotary_scores_depend_on_distance_alone(start):
    q, k = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64)

    def score(position_q: int, position_k: int) -> float:
        turned_q = rotate(q, rotations(torch.tensor([[position_q]]), 64, 100_000.0))
        turned_k = rotate(k, rotations(torch.tensor([[position_k]]), 64, 100_000.0))
        return float((turned_q * turned_k).sum())

    assert score(start + 300, start + 17) == pytest.approx(score(300, 17), abs=1e-4)


def test_rms_norm_works_in_float32_whatever_its_input():
    norm = RMSNorm(4)
    x = torch.tensor([[300.0, -200.0, 100.0, 0.5]], dtype=torch.bfloat16)
    expected = x.float() / x.float().square().mean().sqrt()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x).float(), expected, atol=0, rtol=1e-2)
