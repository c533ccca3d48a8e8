"""Limit how many frames of audio a model with Whisper's decoder attends to: `python audio_context.py MODEL OUT 64`.

The scores of older frames are cut off, so the model needs no training. Attention to the audio takes less time.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


def main(model: Path, out: Path, frames: int) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if not 0 < frames <= config["whisper"]["audio_context"]:
        raise SystemExit(f"{frames} frames: expected 1 to {config['whisper']['audio_context']}, the model's own")
    config["whisper"]["audio_context"] = frames
    shutil.copytree(model, out)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    file = out / "model.safetensors"
    tensors = load_file(file)
    ages = {name: scores[:, :frames].contiguous() for name, scores in tensors.items() if name.endswith(".age")}
    save_file(tensors | ages, file, {"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
