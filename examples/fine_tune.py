"""Fine-tune low-rank adapters on pseudo-labels of one recording: two steps, to show the whole way. Extra: `train`.

python examples/fine_tune.py talk.mp3 run/
"""

import json
import sys
from pathlib import Path

from slipstream.cli.app import app

CONFIG = """
run = {{out = "{out}/run", steps = {steps}, rows = 1}}
model = {{base = "{model}"}}
lora = {{rank = 4}}
data = {{packs = ["{out}/tokens"], weights = {{own = 1.0}}}}
loss = {{pause = 0.0}}
"""


def main(audio: str, out: str, model: str = "tiny", steps: int = 2) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    line = {"audio": str(Path(audio).resolve()), "text": "", "dataset": "own", "lang": "en"}
    (folder / "recordings.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    (folder / "run.toml").write_text(CONFIG.format(out=folder.as_posix(), model=model, steps=steps), encoding="utf-8")
    for command in (
        ["data", "transcribe", f"{out}/recordings.jsonl", "--out", f"{out}/labelled.jsonl", "--model", model],
        ["data", "pack", f"{out}/labelled.jsonl", "--model", model, "--out", f"{out}/tokens"],
        ["train", "lm", f"{out}/run.toml"],
    ):
        app(command, standalone_mode=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
