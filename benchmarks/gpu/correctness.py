"""Tokens of the device, of gathered batches and of lower precision, compared with float32 on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from benchmarks.common import Row
from benchmarks.gpu.bench import Bench, noise

from slipstream.arrays import FloatArray
from slipstream.backends.torch.runner import TorchRunner


def correctness(bench: Bench) -> list[Row]:
    frames = bench.options.frames
    cpu_codec, cpu_lm = copy.deepcopy(bench.codec).cpu(), copy.deepcopy(bench.lm_f32).float().cpu()
    lm = bench.lm_f32.float()
    audio_TBS = np.stack([noise(4, bench.config, seed) for seed in range(frames)])
    alone = TorchRunner(bench.config, bench.codec, lm, slots=1)
    together = TorchRunner(bench.config, bench.codec, lm, slots=4, buckets=(4,))
    gathered = TorchRunner(bench.config, bench.codec, lm, slots=64)
    cpu = tokens(TorchRunner(bench.config, cpu_codec, cpu_lm, slots=4), audio_TBS, range(4))
    batch = tokens(together, audio_TBS, range(4))
    back = tokens(gathered, audio_TBS, range(60, 64))
    single = np.concatenate([tokens_alone(alone, audio_TBS[:, slot : slot + 1]) for slot in range(4)], axis=1)
    rows = [
        {"compared": f"float32, device and CPU: the same of {len(np.unique(cpu))} tokens", "share": share(batch, cpu)},
        {"compared": "float32, four slots and each alone: the same tokens", "share": share(batch, single)},
        {"compared": "float32, gathered slots and each alone: the same tokens", "share": share(back, single)},
    ]
    pcm_BS = torch.from_numpy(audio_TBS.transpose(1, 0, 2).reshape(4, -1)).to(bench.device)
    with torch.inference_mode():
        with allow_tf32(False):
            exact, _ = bench.codec.encode(pcm_BS, num_codebooks=bench.config.lm.num_codebooks)
        with allow_tf32(True):
            rounded, _ = bench.codec.encode(pcm_BS, num_codebooks=bench.config.lm.num_codebooks)
        rows.append(
            {"compared": "codec, TF32 and float32: the same codes", "share": float((exact == rounded).float().mean())}
        )
        text = torch.from_numpy(batch.T[:, :-1].copy()).to(bench.device)
        likeliest = [
            model.text_logits(model(text, exact[..., 1:], None, model.condition(bench.config.condition_values))[0])
            for model in (lm, bench.lm)
        ]
        equal = float((likeliest[0].argmax(-1) == likeliest[1].argmax(-1)).float().mean())
        rows.append({"compared": f"LM, {bench.options.dtype} and float32: the same most likely token", "share": equal})
    return rows


def tokens(runner: TorchRunner, audio_TBS: FloatArray, slots: Sequence[int]) -> np.ndarray[Any, Any]:
    """The greedy tokens `[T, B]` of the given slots. The other slots are inactive."""
    active_B = np.isin(np.arange(runner.slots), list(slots))
    pcm_BS = np.zeros((runner.slots, runner.frame_samples), np.float32)
    rows = []
    for frame_BS in audio_TBS:
        pcm_BS[list(slots)] = frame_BS
        rows.append(runner.step(pcm_BS, active_B).token_B[list(slots)])
    return np.stack(rows)


def tokens_alone(runner: TorchRunner, audio_TBS: FloatArray) -> np.ndarray[Any, Any]:
    runner.reset([0])
    return tokens(runner, audio_TBS, [0])


def share(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    return float(np.mean(left == right))


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
