"""Average the weights of two models of one shape (WiSE-FT, arXiv:2109.01903): keep what the first recognises.

    python recipes/tiny/interpolate.py runs/tiny-2-text/model runs/tiny-4-joint/model runs/tiny-5-mean \
        --encoder 0.5 --rest 0.7

The shares are those of the second model, in the codec's encoder and in everything else.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LM, CODEC = "moshi_name", "mimi_name"
HEADS = "training.safetensors"
ENCODER = "encoder."


def mean(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], share: float, encoder: float
) -> dict[str, torch.Tensor]:
    """Interpolate tensors of the same names; integers are those of the second model."""
    return {
        name: tensor.float().lerp(second[name].float(), encoder if name.startswith(ENCODER) else share).to(tensor.dtype)
        if tensor.is_floating_point()
        else second[name]
        for name, tensor in first.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", type=float, default=0.5, help="share of the second model in the encoder")
    parser.add_argument("--rest", type=float, default=0.7, help="share of the second model elsewhere")
    arguments = parser.parse_args()
    shutil.copytree(arguments.second, arguments.out)
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (arguments.first, arguments.second))
    files = [(first[name], second[name]) for name in (LM, CODEC)]
    if (arguments.first / HEADS).exists():
        files.append((HEADS, HEADS))
    for before, after in files:
        weights = load_file(arguments.first / before), load_file(arguments.second / after)
        save_file(mean(*weights, arguments.rest, arguments.encoder), arguments.out / after)


if __name__ == "__main__":
    main()
