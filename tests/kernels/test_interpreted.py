"""The kernels in Triton's interpreter, compared with PyTorch: `make kernels` sets TRITON_INTERPRET for this process.

A program takes tens of milliseconds here, so that shapes are small. The interpreter truncates casts to bfloat16.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="triton is not installed: `make kernels` installs it")

from slipstream.nn import fused  # noqa: E402

if not fused.INTERPRETED:
    pytest.skip("the interpreter needs TRITON_INTERPRET=1: `make kernels`", allow_module_level=True)

import numpy as np  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from benchmarks.gpu.exact import attention_error, transformer  # noqa: E402
from tests.models import noise_and_tones, random_model, stt_config  # noqa: E402

from slipstream.backends.torch.runner import TorchRunner  # noqa: E402
from slipstream.model.config import STTConfig, TransformerConfig  # noqa: E402
from slipstream.nn import attention, kernels  # noqa: E402
from slipstream.nn.build import build_codec, build_lm  # noqa: E402
from slipstream.nn.layers import locate, ring_attention, rotations  # noqa: E402
from slipstream.nn.ring import Ring, RingFormat  # noqa: E402

# Of the interpreter, where a bound of `tl.range` is a tensor; an error from numpy 2.4 on.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


class Pair:
    """One layer's ring, advanced by the kernels and by PyTorch with the same numbers."""

    def __init__(self, slots: int, heads: int, dim: int, context: int, step: int, dtype: torch.dtype, **form: bool):
        self.step, self.dtype, self.heads, self.dim = step, dtype, heads, dim
        self.config = TransformerConfig(
            dim=heads * dim, num_heads=heads, num_layers=1, ffn_dim=1, context=context, max_period=1e4,
            norm="rms_norm", gated=True,
        )  # fmt: skip
        shape = (1, slots, heads, context + step, dim)  # one column more than needed
        make = lambda: Ring.empty(  # noqa: E731
            shape, device=torch.device("cpu"), dtype=dtype, format=RingFormat(**form), step=step
        )
        self.kernel, self.plain = make(), make()
        self.position_B = torch.zeros(slots, dtype=torch.int64)

    def advance(self, rows: torch.Tensor, splits: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Append one step of random numbers for these slots; the attention's output of both, `[R, T, H * D]`."""
        R, T = len(rows), self.step
        qkv = torch.randn(R, T, 3, self.heads, self.dim, dtype=self.dtype)
        position_RT = self.position_B[rows][:, None] + torch.arange(T)
        at = locate(self.config, position_RT, self.plain.capacity, torch.float32)
        layer = replace(self.kernel, slots_R=rows).layer(0)
        q = kernels.append(qkv, at.rotation, layer, position_RT)
        ours = kernels.attend(q, layer, position_RT, self.config.context, columns=16, splits=splits)
        chosen = self.plain.map(lambda buffer: buffer[:, rows])
        theirs = ring_attention(qkv, at._replace(mask=at.mask.to(self.dtype)), chosen.layer(0))
        for buffer, values in zip(self.plain.tensors, chosen.tensors, strict=True):
            buffer[:, rows] = values
        self.position_B[rows] += T
        return ours.float(), theirs.float()


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(
    ("dim", "dtype", "form", "limit"),
    [
        (64, torch.float32, {}, 1e-6),
        (128, torch.float32, {}, 1e-6),
        (64, torch.bfloat16, {}, 1e-2),
        (64, torch.float32, {"int8": True}, 1e-6),
        (128, torch.float32, {"int8": True, "hadamard": True}, 1e-6),
    ],
)
def test_attention_equals_pytorch_past_the_wrap(dim: int, dtype: torch.dtype, form: dict[str, bool], limit: float):
    torch.manual_seed(0)
    pair = Pair(slots=3, heads=1, dim=dim, context=6, step=1, dtype=dtype, **form)
    for t in range(17):  # the ring has seven columns
        rows = torch.randperm(3)[: 1 + t % 2]
        assert difference(*pair.advance(rows)) < limit
    assert pair.position_B.max() > 7


@pytest.mark.parametrize(
    ("dim", "step", "rings", "limit"),
    [
        (64, 2, RingFormat(), 1e-6),
        (128, 1, RingFormat(align=64), 1e-6),
        (128, 1, RingFormat(int8=True), 0.012),
        (64, 1, RingFormat(int8=True, hadamard=True), 0.012),
    ],
)
def test_attention_is_near_float64_in_full_rings(dim: int, step: int, rings: RingFormat, limit: float):
    shape = transformer(dim, 1, 40), rings, torch.device("cpu"), torch.float32, step
    assert 0 < attention_error(*shape, kernels=True) < limit


@pytest.mark.parametrize("splits", [1, 4])
def test_two_queries_of_the_codec_share_what_they_read(splits: int):
    torch.manual_seed(1)
    pair = Pair(slots=2, heads=2, dim=64, context=37, step=2, dtype=torch.float32)
    pair.position_B[:] = torch.tensor([0, 30])
    for _ in range(6):
        assert difference(*pair.advance(torch.tensor([1, 0]), splits)) < 1e-6


def test_the_kernels_write_the_same_bits_as_pytorch():
    torch.manual_seed(2)
    pair = Pair(slots=2, heads=2, dim=64, context=3, step=1, dtype=torch.float32, int8=True)
    for _ in range(5):
        pair.advance(torch.tensor([1]))
    assert (pair.kernel.k == pair.plain.k).float().mean() > 0.999  # a sum in another order may round otherwise
    assert torch.equal(pair.kernel.v, pair.plain.v)
    torch.testing.assert_close(pair.kernel.v_scale, pair.plain.v_scale, rtol=0, atol=0)
    assert not pair.kernel.k[:, 0].any(), "a slot that is not in the batch was written"


def test_a_vector_of_zeros_stays_zero():
    ring = Ring.empty((1, 1, 1, 4, 64), device=torch.device("cpu"), dtype=torch.float32, format=RingFormat(int8=True))
    position = torch.zeros(1, 1, dtype=torch.int64)
    qkv = torch.zeros(1, 1, 3, 1, 64)
    q = kernels.append(qkv, rotations(position, 64, 1e4), ring.layer(0), position)
    assert not kernels.attend(q, ring.layer(0), position, 4).any()
    assert not ring.k.any()


def test_the_context_is_split_where_rows_are_few():
    assert [kernels.split_count(programs) for programs in (1, 16, 256, 1024, 100_000)] == [16, 16, 4, 1, 1]


def test_elementwise_kernels_equal_pytorch():
    x, weight = torch.randn(3, 2, 84), torch.rand(84) + 0.5
    with torch.no_grad():
        torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-8), F.rms_norm(x, (84,), weight, 1e-8))
        gate, value = x.chunk(2, -1)
        torch.testing.assert_close(kernels.silu_multiply(x), F.silu(gate) * value)
        state = torch.randn(3, 2, 5)
        torch.testing.assert_close(kernels.elu_after(state, x), torch.cat([state, F.elu(x)], -1))
        torch.testing.assert_close(
            kernels.elu_after(state, x[..., :1500]), torch.cat([state, F.elu(x[..., :1500])], -1)
        )


def test_pytorch_runs_where_gradients_are_needed():
    x = torch.randn(2, 8, requires_grad=True)
    fused.rms_norm(x, torch.ones(8), 1e-8).sum().backward()
    assert x.grad is not None


def heads_of_16() -> STTConfig:
    """A model whose heads the kernels have; its rings wrap after six and seven frames."""
    config = stt_config(conditioners=())
    small = {"dim": 32, "num_heads": 2, "num_layers": 1}
    codec = config.codec.model_copy(update={"transformer": config.codec.transformer.model_copy(update=small)})
    lm = config.lm.model_copy(update={"transformer": config.lm.transformer.model_copy(update=small)})
    return config.model_copy(update={"codec": codec, "lm": lm})


@pytest.mark.parametrize("form", [{}, {"int8": True, "hadamard": True}], ids=["float32", "int8"])
def test_a_runner_with_kernels_writes_what_pytorch_writes(monkeypatch: pytest.MonkeyPatch, form: dict[str, bool]):
    """Past every wrap, with random slots, resets, snapshots and savepoints."""
    monkeypatch.setattr(kernels, "PROGRAMS", 1)
    monkeypatch.setattr(kernels, "elu_after", lambda state, x: torch.cat([state, F.elu(x)], -1))  # many programs
    config, rings = heads_of_16(), RingFormat(**form)
    lm, codec = random_model(config)
    modules = build_codec(config.codec, codec), build_lm(config.lm, lm)
    fast, plain = (
        TorchRunner(config, *modules, slots=3, buckets=(1, 2, 3), rings=rings, kernels=kernels)
        for kernels in (True, False)
    )
    assert fast.attention == {"codec": "kernels", "lm": "kernels"}
    rng = np.random.default_rng(0)
    both, frames, used = (fast, plain), noise_and_tones(18 * 0.08).reshape(18, 1920), set()
    for t, frame in enumerate(frames):
        if t == 9:
            for runner in both:
                runner.restore(2, runner.snapshot(0))
        if t == 13:
            for runner in both:
                saved = runner.savepoint(2, 1)
                runner.step(np.zeros((3, 1920), np.float32), np.array([False, False, True]))
                runner.restore(2, saved)
        if t == 15:
            for runner in both:
                runner.reset([0])
        active = rng.random(3) < (0.5 if t % 2 else 0.8)
        used.add(fast._buckets.choose(active)[0])
        ours, theirs = (runner.step(np.stack([frame] * 3), active) for runner in both)
        assert (ours.token_B[active] == theirs.token_B[active]).all()
        limit = 0.02 if rings.int8 else 2e-4  # a number between two integers may be rounded to either
        np.testing.assert_allclose(ours.logprob_B[active], theirs.logprob_B[active], atol=limit)
    assert {bucket.gathered for bucket in used} == {False, True}


def test_the_runner_compares_the_kernels_with_pytorch_before_it_uses_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    config, cpu = heads_of_16().lm.transformer, torch.device("cpu")
    arguments = (config, RingFormat(), cpu, torch.float32, 1)
    assert attention.kernel_error(*arguments) < 1e-6
    assert attention.kernels_work(*arguments)
    monkeypatch.setattr(fused, "ring_attention", lambda qkv, at, ring: torch.zeros(2, 1, 32))
    assert not attention.kernels_work(*arguments)
    assert "the kernels differ from it by 1" in caplog.text
    monkeypatch.setattr(fused, "ring_attention", lambda qkv, at, ring: 1 / 0)
    assert not attention.kernels_work(*arguments)
    assert "the kernels failed: ZeroDivisionError" in caplog.text
