"""The speed of a training step of the LM: rows come from worker processes, and nothing waits for the device."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.gpu.bench import randomise
from torch.utils.data import DataLoader, Dataset

from slipstream.checkpoints.presets import PRESETS
from slipstream.model.config import LMConfig
from slipstream.nn.lm import LM
from slipstream.testing import small_config

WORKERS = 16
SECONDS = 30
"""Length of a row in seconds of speech."""


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random tokens in the shape of packed rows: text `[T + 1]` and audio `[K, T]`."""

    def __init__(self, config: LMConfig, frames: int) -> None:
        self.config, self.frames = config, frames

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        text = torch.randint(0, self.config.text_vocab, (self.frames + 1,), generator=generator)
        shape = self.config.num_codebooks, self.frames
        return text, torch.randint(0, self.config.audio_vocab, shape, generator=generator)


def train(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield rows per second for batches of 64 and 128 rows, by model size."""
    device, cuda = torch.device(options.device), options.device.startswith("cuda")
    config = small_config(conditioners=()).lm if options.small else PRESETS["kyutai/stt-1b-en_fr"].lm
    for batch in (2,) if options.small else (64, 128):
        lm = LM(config).to(device)
        randomise(lm)
        lm.transformer.checkpointing = True
        optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=cuda)
        frames = 8 if options.small else round(SECONDS * 12.5)
        workers = 2 if options.small else WORKERS
        loader = DataLoader(Rows(config, frames), batch, num_workers=workers, pin_memory=cuda, prefetch_factor=4)
        total, began, count = torch.zeros((), device=device), 0.0, 2 if options.small else 20
        for step, (text, audio) in enumerate(loader):
            if step == 2:  # the first ones start the workers and choose kernels
                wait(device)
                began = time.perf_counter()
            text, audio = text.to(device, non_blocking=True), audio.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16):
                logits = lm.text_logits(lm(text[:, :-1], audio)[0])
            loss = F.cross_entropy(logits.float().flatten(0, 1), text[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()  # read once, at the end: `.item()` in each step would wait for the device
            if step == count + 1:
                break
        wait(device)
        seconds = (time.perf_counter() - began) / count
        yield {
            "batch": batch,
            "step_ms": 1e3 * seconds,
            "rows_per_s": batch / seconds,
            "x real time": batch * frames / 12.5 / seconds,
            "mean loss": float(total) / (count + 2),
            "memory_gb": torch.cuda.max_memory_reserved(device) / 1e9 if cuda else None,
        }


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
