"""Attention in PyTorch compared with float64: the same for every format, up to the format's rounding."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks.gpu.exact import attention_error, transformer  # noqa: E402

from benchmarks.gpu import exact as module  # noqa: E402
from slipstream.nn.ring import RingFormat  # noqa: E402


@pytest.mark.parametrize(
    ("dtype", "rings", "least", "most"),
    [
        (torch.float32, RingFormat(), 0, 1e-6),
        (torch.float32, RingFormat(align=64), 0, 1e-6),
        (torch.bfloat16, RingFormat(), 1e-3, 5e-3),
        (torch.float32, RingFormat(int8=True), 5e-3, 2e-2),
        (torch.bfloat16, RingFormat(int8=True, hadamard=True), 5e-3, 2e-2),
    ],
)
@pytest.mark.parametrize("step", [1, 2])
def test_the_error_is_that_of_the_format(
    dtype: torch.dtype, rings: RingFormat, least: float, most: float, step: int
) -> None:
    config = transformer(64, 2, 30)
    assert least <= attention_error(config, rings, torch.device("cpu"), dtype, step, kernels=False) < most


def test_attention_that_is_a_column_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(config: object, at: torch.Tensor, *more: object) -> object:
        return locate(config, at, *more)._replace(columns_BT=(at + 1) % 30)  # type: ignore[arg-type]

    locate = module.locate
    monkeypatch.setattr(module, "locate", off)
    config = transformer(64, 2, 30)
    assert attention_error(config, RingFormat(), torch.device("cpu"), torch.float32, 1, kernels=False) > 0.05
