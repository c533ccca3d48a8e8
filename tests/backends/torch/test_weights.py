"""Linear layers with 8-bit weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.models import lm_config, random_weights  # noqa: E402

from slipstream.backends.torch.weights import LINEARS, quantise_weights  # noqa: E402
from slipstream.model.names import lm_shapes  # noqa: E402
from slipstream.nn.build import build_lm  # noqa: E402


@pytest.mark.parametrize(("kind", "limit"), [("int8", 0.01), ("fp8", 0.05)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_weights_up_to_rounding(kind: str, limit: float, dtype: torch.dtype):
    torch.manual_seed(0)
    weight, x = torch.randn(48, 64, dtype=dtype), torch.randn(3, 2, 64, dtype=dtype)
    true = x.float() @ weight.float().T
    y = LINEARS[kind](weight)(x)
    assert y.dtype == dtype
    assert y.shape == (3, 2, 48)
    assert (y.float() - true).norm() / true.norm() < limit


def test_the_layers_of_a_transformer_are_replaced_and_its_heads_are_not():
    config = lm_config(conditioners=())
    weights = random_weights(lm_shapes(config))
    exact, rounded = build_lm(config, weights), build_lm(config, weights)
    quantise_weights(rounded.transformer, "int8")
    assert {type(layer.attn.in_proj).__name__ for layer in rounded.transformer.layers} == {"Int8Linear"}
    assert isinstance(rounded.text_linear, torch.nn.Linear)
    text, audio = rounded.initial_tokens(2)
    one, other = (lm.text_logits(lm(text, audio)[0]) for lm in (exact, rounded))
    assert 0 < (one - other).norm() / one.norm() < 0.05
