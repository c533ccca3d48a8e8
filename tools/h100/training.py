"""The part `train`: the built-in model's training on the device, from speech that was carried there or made there.

Worker processes draw the rows, no step waits for the device, and batches have 64 and 128 rows. The configuration is
that of recipes/tiny/4-joint.toml with new weights. Then the LM of `stt-1b` on random rows, without any data.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomllib
import torch
import torch.nn.functional as F
from benchmarks.gpu.bench import randomise
from tools.h100 import speech
from tools.h100.making import Row, synchronise
from torch.utils.data import DataLoader, Dataset

from slipstream.checkpoints.presets import PRESETS
from slipstream.data.packs import Pack
from slipstream.errors import BackendError
from slipstream.model.config import LMConfig
from slipstream.model.text import Tokenizer
from slipstream.nn.lm import LM
from slipstream.testing import LEXICON, small_config
from slipstream.train.launch import run_lm
from slipstream.train.options import LMRun

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "tiny" / "4-joint.toml"
TOKENIZER = ROOT / "src" / "slipstream" / "models" / "tiny" / "tokenizer.model"
MINUTES = 1.5
"""Of training with each size of batch."""
SECONDS = 30
"""Length of a random row of the large LM, in seconds of speech."""


def train(options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        packs: list[Path] = []
        for row, pack in gather(options, folder):
            yield row
            packs.append(pack)
        for rows in (4,) if options.small else (64, 128):
            yield run(options, packs, rows, folder)
    yield from random_rows(options)


# --------------------------------------------------------------------------------------------------------------- data


def gather(options: argparse.Namespace, folder: Path) -> Iterator[tuple[Row, Path]]:
    """Decode what was carried and speak the texts; yields how long each took, and its pack."""
    workers = worker_count(options)
    found = sorted(path.parent for path in options.data.glob("*/pack.json"))
    for number, source in enumerate(found):
        pack, began = folder / f"pack-{number}", time.perf_counter()
        seconds = speech.unpack(source, pack, workers)
        yield made(f"decoded {source.name}", seconds, began, workers), pack
    texts = texts_of(options)
    pack, began = folder / "synthetic", time.perf_counter()
    try:
        seconds = speech.synthesise(texts, "en", pack, workers)
        yield made("synthesised", seconds, began, workers), pack
    except BackendError as missing:
        seconds = speech.noise(20 if options.small else 1000, pack)
        yield {"data": "noise", "hours": seconds / 3600, "note": str(missing)}, pack


def made(what: str, seconds: float, began: float, workers: int) -> Row:
    took = time.perf_counter() - began
    return {"data": what, "hours": seconds / 3600, "processes": workers, "took s": took, "x real time": seconds / took}


def worker_count(options: argparse.Namespace) -> int:
    return 2 if options.small else min(16, os.cpu_count() or 1)


def texts_of(options: argparse.Namespace) -> list[str]:
    """The sentences that were carried, or random words."""
    path = options.data / speech.TEXTS
    if path.exists():
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode().splitlines()
        sentences = [line.strip() for line in lines if line.strip()]
    else:
        rng = np.random.default_rng(0)
        sentences = [" ".join(rng.choice(list(LEXICON), int(rng.integers(4, 14)))) for _ in range(4000)]
    return sentences[: 12 if options.small else 4000]


# ---------------------------------------------------------------------------------------------------------------- run


class Lines:
    """A tracker that prints each line of the log as a row of the part."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._rows = settings["rows"]

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        kept = {name: numbers[name] for name in ("loss", "text", "gradient") if name in numbers}
        row = {"rows": self._rows, "step": step, **kept, "x real time": numbers["realtime"]}
        print(json.dumps(row), flush=True)

    def close(self) -> None:
        pass


def run(options: argparse.Namespace, packs: list[Path], rows: int, folder: Path) -> Row:
    """Train with batches of `rows` rows."""
    cuda = options.device.startswith("cuda")
    out, settings = folder / f"run-{rows}", configuration(options, packs, rows, folder)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    run_lm(LMRun.model_validate(settings), lambda line: print(line, file=sys.stderr))
    log = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [line["realtime"] for line in log[len(log) // 3 :]]
    return {
        "rows": rows,
        "step": log[-1]["step"],
        "loss": log[-1]["loss"],
        "x real time": float(np.median(speeds)),
        "rows_per_s": float(np.median(speeds)) / settings["data"]["seconds"],
        "took s": time.perf_counter() - began,
        "memory_gb": torch.cuda.max_memory_reserved() / 1e9 if cuda else None,
        "note": "the whole run; x real time is the median of its last two thirds",
    }


def configuration(options: argparse.Namespace, packs: list[Path], rows: int, folder: Path) -> dict[str, Any]:
    """The recipe's run with other data, new weights, and this device."""
    settings = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    settings.pop("distil", None)
    settings["run"] = {
        "out": folder / f"run-{rows}",
        **({"steps": 4} if options.small else {"minutes": MINUTES}),
        "rows": rows,
        "dtype": "auto",
        "optimizer": "muon",
        "learning_rate": 1e-3,
        "log_every": 1 if options.small else 10,
        "workers": worker_count(options),
        "trackers": ["tools.h100.training:Lines"],
        "device": options.device,
    }
    del settings["model"]["init"]
    datasets = sorted({clip.dataset for pack in packs for clip in Pack(pack).clips})
    data = settings["data"]
    for key in ("texts", "text_share"):
        data.pop(key, None)
    data |= {"packs": packs, "weights": dict.fromkeys(datasets, 1.0), "tokenizer": TOKENIZER}
    data["augment_samples"].pop("sounds", None)
    if importlib.util.find_spec("av") is None:  # telephone lines are encoded by FFmpeg
        data["augment_samples"]["telephone"] = 0.0
    settings["model"]["lm"]["text_vocab"] = Tokenizer(TOKENIZER).vocab_size
    settings["quantiser"] = {"start": 2 if options.small else 50, "share": 1.0}
    if options.small:
        shapes = {"dim": 32, "num_heads": 2, "num_layers": 2, "ffn_dim": 64}
        settings["model"]["codec"] |= {"codebook_size": 64, "num_codebooks": 4, "num_semantic": 2, "codebook_dim": 16}
        settings["model"]["codec"]["whisper"] |= {**shapes, "context": 50, "lookahead": 4}
        settings["model"]["lm"] |= {"audio_vocab": 64, "num_codebooks": 4}
        settings["model"]["lm"]["transformer"] |= {**shapes, "context": 32}
        data["seconds"] = 10.24
    return settings


# -------------------------------------------------------------------------------------------------------- the large LM


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


def random_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield rows per second of the LM of `stt-1b` for batches of 64 and 128 rows."""
    device, cuda = torch.device(options.device), options.device.startswith("cuda")
    config = small_config(conditioners=()).lm if options.small else PRESETS["kyutai/stt-1b-en_fr"].lm
    for batch in (2,) if options.small else (64, 128):
        lm = LM(config).to(device)
        randomise(lm)
        lm.transformer.checkpointing = True
        optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=cuda)
        frames = 8 if options.small else round(SECONDS * 12.5)
        workers, count = worker_count(options), 2 if options.small else 12
        loader = DataLoader(Rows(config, frames), batch, num_workers=workers, pin_memory=cuda, prefetch_factor=4)
        total, began = torch.zeros((), device=device), 0.0
        for step, (text, audio) in enumerate(loader):
            if step == 2:  # the first ones start the workers and choose kernels
                synchronise(device)
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
        synchronise(device)
        seconds = (time.perf_counter() - began) / count
        yield {
            "data": "random rows, the LM of stt-1b",
            "rows": batch,
            "loss": float(total) / (count + 2),
            "x real time": batch * frames / 12.5 / seconds,
            "rows_per_s": batch / seconds,
            "memory_gb": torch.cuda.max_memory_reserved(device) / 1e9 if cuda else None,
        }
