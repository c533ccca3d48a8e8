"""The speed of training: seconds of audio per second, of this tree and of another revision, taking turns in one run.

    python -m benchmarks.train --against HEAD~10                  # LM on a frozen encoder, two processes
    python -m benchmarks.train --encoder-rate 0.2 --against v0.1  # the encoder learns too

Rows, model and optimiser are those of the recipe of the built-in model, with synthetic recordings: the time of a step
does not depend on their content. The other revision is checked out into a temporary worktree. Each tree trains for a
few steps in turn, so that whatever else the machine does falls on both; the first step of each turn, which compiles and
allocates, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from slipstream.data.packs import Clip, PackKind, write_pack

HERE = Path(__file__).parent.parent
RATE = 24_000
WARM_UP = 1
WORDS = ("the", "word", "time", "people")
RUN = """
train_codec = true

[run]
out = "{out}"
steps = {steps}
rows = {rows}
dtype = "{dtype}"
optimizer = "{optimizer}"
learning_rate = 1e-4
encoder_rate = {encoder_rate}
log_every = 1
checkpoint_every = 1000000
{more}

[model]
init = "tiny"

[data]
packs = ["{folder}/pack"]
seconds = 15.36
text_errors = 0.1
texts = ["{folder}/texts.txt"]
text_share = 0.2

[data.weights]
synthetic = 1.0

[data.augment_samples]
noise = 0.4
snr_db = [4.0, 32.0]
reverb = 0.18
telephone = 0.07

[quantiser]
start = 0
share = 1.0
"""


def recordings(count: int = 200) -> Iterator[tuple[np.ndarray, Clip]]:
    """Noise of 2 to 8 s with three words per second."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        seconds = float(rng.uniform(2, 8))
        samples = (rng.standard_normal(round(seconds * RATE)) * 2000).astype(np.int16)[:, None]
        starts = np.arange(0, seconds - 0.3, 0.33)
        words = tuple((WORDS[i % 4], float(at), float(at) + 0.3) for i, at in enumerate(starts))
        text = " ".join(word for word, _, _ in words)
        yield samples, Clip(0, 0, text, "en", "synthetic", "", words)


@contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """Check a revision out for as long as the benchmark runs."""
    path = folder / "against"
    subprocess.run(["git", "-C", HERE, "worktree", "add", "--detach", "-q", path, revision], check=True)
    try:
        yield path
    finally:
        subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", path], check=True)


def turn(tree: Path, folder: Path, number: int, arguments: argparse.Namespace, more: str) -> list[float]:
    """Seconds of audio per second in each step of a short run of `tree`."""
    out = folder / f"run-{number}"
    given = {name: getattr(arguments, name) for name in ("rows", "dtype", "optimizer", "encoder_rate")}
    steps = WARM_UP + arguments.steps
    file = folder / f"run-{number}.toml"
    file.write_text(RUN.format(out=out, folder=folder, steps=steps, more=more, **given), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(arguments.processes)]
    launch += ["--master-port", str(29_500 + number % 100)]
    command = [*(launch if arguments.processes > 1 else [sys.executable]), "-m", "slipstream", "train", "lm", str(file)]
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stdout}{done.stderr}")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["realtime"] for line in lines[WARM_UP:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a revision to compare with")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="measured in each turn")
    parser.add_argument("--turns", type=int, default=2, help="of each tree")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--optimizer", default="muon", choices=["adamw", "muon"])
    parser.add_argument("--encoder-rate", type=float, default=0.0)
    parser.add_argument("--more", default="", help="further lines of [run] for this tree, such as 'compile = true'")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "texts.txt").write_text("the word time people\n" * 10, encoding="utf-8")
        write_pack(folder / "pack", PackKind("samples", 1, float(RATE), (0.0,)), recordings())
        ours: list[float] = []
        theirs: list[float] = []
        if arguments.against is None:
            for number in range(arguments.turns):
                ours += turn(HERE, folder, number, arguments, arguments.more.replace(";", "\n"))
        else:
            with worktree(arguments.against, folder) as other:
                for number in range(arguments.turns):
                    theirs += turn(other, folder, 2 * number, arguments, "")
                    ours += turn(HERE, folder, 2 * number + 1, arguments, arguments.more.replace(";", "\n"))
        for name, speeds in ((arguments.against, theirs), ("this tree", ours)):
            if speeds:
                low, median, high = np.quantile(speeds, (0.1, 0.5, 0.9))
                print(f"{name}: {median:.1f} s of audio per second (10 % to 90 %: {low:.1f} to {high:.1f})")
        if theirs:
            print(f"ratio of the medians: {np.median(ours) / np.median(theirs):.2f}")


if __name__ == "__main__":
    main()
