"""MLXRunner beyond the laws: equal to the PyTorch runner, compiled or not, on any thread, in memory that stays flat."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="MLX is not installed: pip install 'slipstream-stt[mlx]'")

from tests.models import decoder_lm_config, lm_config, noise_and_tones, random_model, stt_config  # noqa: E402

from slipstream.backends.mlx.runner import MLXRunner  # noqa: E402
from slipstream.checkpoints.mlx import lm_table, quantized  # noqa: E402
from slipstream.model.config import SamplingConfig, STTConfig  # noqa: E402

ON = np.array([True])


def make(config: STTConfig | None = None, **options) -> MLXRunner:
    config = config or stt_config()
    return MLXRunner(config, *random_model(config), **options)


def frames(count: int, seed: int = 0) -> np.ndarray:
    return noise_and_tones(count * 0.08, seed).reshape(count, 1, 1920)


def tokens(runner: MLXRunner, frames_T1S: np.ndarray) -> list[int]:
    return [int(runner.step(frame, ON).token_B[0]) for frame in frames_T1S]


@pytest.mark.parametrize(
    ("model", "steps"),
    [({}, 300), ({"codec": "log-mel"}, 60), ({"codec": "whisper"}, 60), ({"decoder": True, "text_vocab": 14}, 60)],
    ids=["waveform", "log-mel", "whisper", "decoder"],
)
def test_tokens_are_those_of_the_pytorch_runner(model: dict, steps: int):
    torch_runner = pytest.importorskip("slipstream.backends.torch.runner", reason="the reference is the PyTorch model")
    from slipstream.nn.build import build_codec, build_lm

    config = stt_config(**model)
    lm, codec = random_model(config)
    runner = MLXRunner(config, lm, codec, slots=3)
    reference = torch_runner.TorchRunner(config, build_codec(config.codec, codec), build_lm(config.lm, lm), slots=3)
    audio = np.concatenate([frames(steps, seed) for seed in range(3)], axis=1)
    rng, said = np.random.default_rng(0), set()
    for frame in audio:
        resets = np.flatnonzero(rng.random(3) < 0.02).tolist()
        runner.reset(resets)
        reference.reset(resets)
        active = rng.random(3) < 0.8
        ours, theirs = runner.step(frame, active), reference.step(frame, active)
        assert ours.token_B[active].tolist() == theirs.token_B[active].tolist()
        np.testing.assert_allclose(ours.logprob_B[active], theirs.logprob_B[active], atol=1e-3)
        np.testing.assert_allclose(ours.pause_BH[active], theirs.pause_BH[active], atol=1e-3)
        said.update(ours.token_B[active].tolist())
    assert len(said) > 10, "random weights that always say the same prove nothing"


def test_the_compiled_step_is_the_step():
    runner, plain = make(), make()
    plain._compiled = plain._step
    for frame in frames(12):
        compiled, step = runner.step(frame, ON), plain.step(frame, ON)
        assert compiled.token_B[0] == step.token_B[0]
        np.testing.assert_allclose(compiled.logprob_B, step.logprob_B, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_runner_made_here_steps_on_another_thread(dtype: str):
    # MLX computes on demand, and cannot compute on one thread what another thread requested.
    audio = frames(12)
    expected = tokens(make(dtype=dtype), audio)
    runner = make(dtype=dtype)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(tokens, runner, audio[:6]).result() == expected[:6]
        saved = other.submit(runner.snapshot, 0).result()
    runner.reset([0])
    tokens(runner, frames(3, seed=1))
    runner.restore(0, saved)
    assert tokens(runner, audio[6:]) == expected[6:]


def test_memory_stays_flat_and_rings_are_not_copied():
    wide = lm_config().transformer.model_copy(update={"context": 4000})
    runner = make(stt_config(transformer=wide))
    ring = runner._state["lm"][0].k.nbytes
    tokens(runner, frames(3))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    audio = frames(40, seed=1)
    tokens(runner, audio[:20])
    assert abs(mx.get_active_memory() - before) < ring / 10
    tokens(runner, audio[20:])
    assert abs(mx.get_active_memory() - before) < ring / 10
    # Four rings (two layers' keys and values); a copy of each would double them.
    assert mx.get_peak_memory() - before < 2 * ring


@pytest.mark.parametrize("heard", [0, 3, 20])  # fresh, before any ring is full, past the wrap of all
def test_a_saved_stream_continues_in_another_runner(heard: int):
    audio = frames(heard + 10)
    first, second = make(), make(slots=1)
    tokens(first, audio[:heard])
    saved = first.snapshot(0)
    expected = tokens(first, audio[heard:])
    tokens(second, frames(12, seed=1))
    second.restore(0, saved)
    assert tokens(second, audio[heard:]) == expected


def test_sampling_is_seeded_and_top_1_is_greedy():
    warm, audio = SamplingConfig(temperature=1.5), frames(15)
    assert tokens(make(sampling=warm, seed=1), audio) == tokens(make(sampling=warm, seed=1), audio)
    assert tokens(make(sampling=warm, seed=1), audio) != tokens(make(sampling=warm, seed=2), audio)
    top_1 = SamplingConfig(temperature=1.5, top_k=1)
    assert tokens(make(sampling=top_1, seed=1), audio) == tokens(make(), audio)


def test_draws_follow_the_probabilities_of_the_top_k():
    runner = make(sampling=SamplingConfig(temperature=2.0, top_k=3))
    logits = np.array([2.0, 1.0, 0.0, -1.0, -2.0], dtype=np.float32)
    drawn = runner._pick(mx.array(np.tile(logits, (20_000, 1))), mx.random.key(0))
    expected = np.exp(logits[:3] / 2) / np.exp(logits[:3] / 2).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 20_000, [*expected, 0, 0], atol=0.012)


def test_condition_values_change_the_text():
    half, four = (stt_config().model_copy(update={"condition_values": {"delay": d}}) for d in (0.5, 4.0))
    assert tokens(make(half), frames(15)) != tokens(make(four), frames(15))


def test_a_decoder_runs_in_bfloat16_and_on_quantised_matrices():
    shape = decoder_lm_config().transformer.model_copy(update={"dim": 128, "num_heads": 4, "ffn_dim": 192})
    config, audio = stt_config(decoder=True, transformer=shape), frames(12)
    whole = make(config).step(audio[0], ON)
    for options in ({"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantize": 8}):
        runner = make(config, **options)
        state = runner.snapshot(0).state["lm"]
        assert {ring.k.dtype for ring in state["text"] + state["audio"]} == {mx.bfloat16}
        rounded = runner.step(audio[0], ON)
        np.testing.assert_allclose(rounded.pause_BH, whole.pause_BH, atol=0.1)
        assert (rounded.pause_BH != whole.pause_BH).any()
        tokens(runner, audio[1:])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_runner_writes_what_the_same_weights_write_as_floats(bits: int):
    wide = lm_config().transformer.model_copy(update={"dim": 128, "num_heads": 4, "ffn_dim": 192})
    config, audio = stt_config(transformer=wide, conditioners=()), frames(25)
    lm, codec = random_model(config)
    table = lm_table(config.lm)
    rounded = table.read(quantized(table.write(lm), bits), "these weights")
    runner, floats = MLXRunner(config, lm, codec, quantize=bits), MLXRunner(config, rounded, codec)
    assert tokens(runner, audio) == tokens(floats, audio)


def test_bfloat16_runs_in_bfloat16():
    runner = make(dtype="bfloat16")
    state = runner.snapshot(0).state
    assert (state["lm"][0].k.dtype, state["codec"]["transformer"][0].k.dtype) == (mx.bfloat16, mx.float32)
    first, second = runner.step(frames(1)[0], ON), make().step(frames(1)[0], ON)
    assert first.logprob_B.dtype == np.float32
    np.testing.assert_allclose(first.pause_BH, second.pause_BH, atol=0.1)


def test_a_runner_without_slots_is_refused():
    with pytest.raises(ValueError, match="slots=0"):
        make(slots=0)
