"""Grow the vocabulary of a checkpoint as wide as stt-1b and train adapters on it: memory, resume, and what it exports.

    python -m benchmarks.grow --layers 16 --device cuda --dtype bfloat16 --rows 8 --seconds 60
    python -m benchmarks.grow --layers 2                  # on a CPU, two of the sixteen layers

Weights, codec and tokens are random: the memory and the arithmetic are those of a real run, the losses mean nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at import

from slipstream.checkpoints.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from slipstream.checkpoints.presets import PRESETS
from slipstream.checkpoints.sources import resolve
from slipstream.data.options import DataOptions
from slipstream.data.packs import Clip, PackKind, write_pack
from slipstream.data.tokenizer import train_tokenizer
from slipstream.model.config import STTConfig
from slipstream.model.names import codec_shapes
from slipstream.nn.lm import LM
from slipstream.train.launch import run_lm
from slipstream.train.lora import ADAPTER_CONFIG
from slipstream.train.options import LMRun, LoraOptions, LossOptions, ModelOptions, RunOptions

STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--pieces", type=int, default=2000, help="new pieces")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments, Path(folder)), indent=2))


def measure(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Train in two parts with an interruption between them; compare the merged export with the adapter on its base."""
    preset = PRESETS["kyutai/stt-1b-en_fr"]
    transformer = preset.lm.transformer.model_copy(update={"num_layers": given.layers})
    lm = preset.lm.model_copy(update={"transformer": transformer})
    config = preset.model_copy(update={"lm": lm})
    words = vocabulary(folder, lm.text_vocab, given.pieces)
    base_folder, started = folder / "base", time.monotonic()
    save_checkpoint(random_checkpoint(config, folder / "old.model"), base_folder, "kyutai")
    random_pack(folder / "pack", config, words)
    built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if f"step {STEPS // 2} " in line:
            signal.raise_signal(signal.SIGINT)

    options = LMRun(
        run=RunOptions(
            out=folder / "run",
            steps=STEPS,
            rows=given.rows,
            log_every=1,
            device=given.device,
            dtype=given.dtype,
            checkpoint_layers=True,
            learning_rate=2e-4,
        ),
        model=ModelOptions(base=str(base_folder)),
        data=DataOptions(
            packs=(folder / "pack",), weights={"own": 1.0}, tokenizer=folder / "new.model", seconds=given.seconds
        ),
        loss=LossOptions(pause=0.0),
        lora=LoraOptions(rank=given.rank),
    )
    try:
        run_lm(options, report)
    except KeyboardInterrupt:
        model = run_lm(options, lines.append)
    merged = read_checkpoint(resolve(model))
    beside = read_checkpoint(resolve(base_folder, config=model / ADAPTER_CONFIG))
    apart = max(
        float(np.abs(merged.lm[n].astype(np.float32) - beside.lm[n].astype(np.float32)).max()) for n in merged.lm
    )
    return {
        "layers": given.layers,
        "pieces": [lm.text_vocab, merged.config.lm.text_vocab],
        "estimate": next(line for line in lines if "parameters" in line),
        "resumed": next(line for line in lines if f"from step {STEPS // 2}" in line).rpartition(": ")[2],
        "last": lines[-1],
        "peak_gib_of_building_the_checkpoint": round(built / 2**20, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "gpu_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if given.device == "cuda" else None,
        "largest_difference_of_adapter_and_merged_weights": apart,
        "seconds": round(time.monotonic() - started),
    }


def vocabulary(folder: Path, size: int, more: int) -> list[str]:
    """Write `old.model` with `size` pieces and `new.model` with `more` after them; give the new words."""
    train_tokenizer(["one two three four five six"] * 30, folder / "small.model", 40, hard_limit=False)
    proto = ModelProto()
    proto.ParseFromString((folder / "small.model").read_bytes())
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b + c for a in letters for b in letters for c in letters]
    for at, name in ((size, "old.model"), (size + more, "new.model")):
        while len(proto.pieces) < at:
            number = len(proto.pieces)
            proto.pieces.add(piece=f"\u2581{words[number]}", score=-20.0 - number / 1e4, type=proto.pieces[0].NORMAL)
        (folder / name).write_bytes(proto.SerializeToString())
    return words[size : size + more]


def random_checkpoint(config: STTConfig, tokenizer: Path) -> Checkpoint:
    torch.manual_seed(0)
    lm = {name: tensor.bfloat16().float().numpy() for name, tensor in LM(config.lm).state_dict().items()}
    rng = np.random.default_rng(0)
    codec = {n: rng.random(shape, np.float32) * 0.02 + 0.01 for n, shape in codec_shapes(config.codec).items()}
    return Checkpoint(config, lm, codec, tokenizer)


def random_pack(folder: Path, config: STTConfig, words: list[str]) -> None:
    rng, K = np.random.default_rng(1), config.lm.num_codebooks
    kind = PackKind("tokens", K, 12.5, (0.0,) * K)

    def item() -> tuple[np.ndarray, Clip]:
        spoken = [str(word) for word in rng.choice(words, 4)]
        times = tuple((word, 0.5 * i, 0.5 * i + 0.4) for i, word in enumerate(spoken))
        return rng.integers(0, config.lm.audio_vocab, (25, K)), Clip(0, 0, " ".join(spoken), "xx", "own", "", times)

    write_pack(folder, kind, (item() for _ in range(50)))


if __name__ == "__main__":
    main()
