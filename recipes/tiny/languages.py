"""Give a model that has Whisper's decoder the languages that a stream can be set to, without training.

    python recipes/tiny/languages.py runs/tiny-7/model runs/tiny-7-languages --whisper FOLDER --languages en fr

The tensors of a language are the difference between the prefix of its prompt and that of all the languages, computed by
the layers of the model from Whisper's embeddings. `--scale` multiplies them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from slipstream.bundle import ModelBundle
from slipstream.checkpoints.whisper import read_whisper_decoder
from slipstream.nn.build import build_lm
from slipstream.train.whisper_start import embedded_prompts, prompts, start_languages, vocabulary_beside


def language_tensors(model: Path, whisper: str, languages: list[str], scale: float) -> dict[str, torch.Tensor]:
    """Return the tensors of the languages by their canonical names, bfloat16."""
    bundle = ModelBundle.resolve(model)
    config, weights = bundle.config.lm, dict(bundle.checkpoint().lm)
    assert config.whisper is not None, f"{model} does not have Whisper's decoder"
    changed = config.model_copy(update={"whisper": config.whisper.model_copy(update={"languages": tuple(languages)})})
    shape = (len(languages), 2, config.transformer.num_heads, config.whisper.prefix, config.transformer.head_dim)
    names = [f"transformer.layers.{i}.languages" for i in range(config.transformer.num_layers)]
    lm = build_lm(changed, weights | {name: np.zeros(shape, np.float32) for name in names})
    prompt_LPD = embedded_prompts(
        read_whisper_decoder(whisper), prompts(vocabulary_beside(whisper), languages, "--languages", every=True)
    )
    start_languages(lm, prompt_LPD, prompt_LPD)
    return {name: (scale * lm.state_dict()[name]).to(torch.bfloat16) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--whisper", required=True, help="Whisper's checkpoint, with its tokenizer.json")
    parser.add_argument("--languages", nargs="+", default=["en", "fr"])
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    tensors = language_tensors(arguments.model, arguments.whisper, arguments.languages, arguments.scale)
    shutil.copytree(arguments.model, arguments.out)
    config = json.loads((arguments.out / "config.json").read_text(encoding="utf-8"))
    config["whisper"]["languages"] = arguments.languages
    (arguments.out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    file = arguments.out / "model.safetensors"
    save_file(load_file(file) | tensors, file, {"format": "pt"})


if __name__ == "__main__":
    main()
