"""An archive on a local Ray while an actor is killed: `python -m benchmarks.ray_data [--files 2000]`.

Short files, some long ones and some that are not audio are transcribed by two actors, one of which is killed in the
middle. The report has the time, whether every file has its row, and when the last short file was done: with slots that
take files as they become free, long files do not delay the short ones. The model is a small one with random weights:
this measures the pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
import wave
from pathlib import Path

from benchmarks.ray_serve import local_cluster, ray_processes

from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint
from slipstream.ray.data import save
from slipstream.testing import noise_and_tones, random_model, small_config, tokenizer_path

RATE = 24_000
BAD_FILES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000, help="short ones, of 2 s")
    parser.add_argument("--long", type=int, default=4, help="long ones, of 120 s")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--actors", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, local_cluster():
        folder = Path(name)
        model = small_model(folder / "model")
        # The long ones come first: batches would make the files with them wait.
        paths = [write(folder / f"long{number}.wav", 120.0, number) for number in range(arguments.long)]
        paths += [write(folder / f"{number}.wav", 2.0, number) for number in range(arguments.files)]
        for number in range(BAD_FILES):
            (folder / f"bad{number}.wav").write_text("not audio")
            paths.append(folder / f"bad{number}.wav")
        output = folder / "out.jsonl"
        began = time.perf_counter()
        killed_at = last_short = 0.0
        killed = 0

        def progress(done: int, total: int) -> None:
            nonlocal killed_at, killed
            if not killed and done > total / 2:
                killed = min(ray_processes("ray::MapWorker(MapBatches(Actor"))
                killed_at = time.perf_counter() - began
                os.kill(killed, signal.SIGKILL)

        options = {"model": str(model), "slots": arguments.slots, "actors": arguments.actors, "backend": "onnx"}
        _, failures = save(paths, output, progress=progress, **options)
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        last_short = max(index for index, row in enumerate(rows) if 0 < row["duration"] < 60)
        long_after = sum(row["duration"] > 60 for row in rows[last_short:])
        audio = sum(row["duration"] for row in rows)
        again = time.perf_counter()
        skipped, _ = save(paths, output, **options)
        print(f"{len(paths)} files, {audio:.0f} s of audio, {seconds:.0f} s; an actor killed after {killed_at:.0f} s")
        print(f"{len(rows)} rows, {len({row['id'] for row in rows})} different IDs, {len(failures)} with an error")
        print(f"{long_after} of {arguments.long} long files were done after the last short one")
        print(f"a second run skipped {skipped} files and took {time.perf_counter() - again:.0f} s")


def small_model(folder: Path) -> Path:
    """Write a small model with random weights."""
    config = small_config()
    lm, codec = random_model(config)
    save_checkpoint(Checkpoint(config, lm, codec, tokenizer_path()), folder, "kyutai")
    return folder


def write(path: Path, seconds: float, seed: int) -> Path:
    """Write a WAV file of noise and tones."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((noise_and_tones(seconds, seed) * 32767 * 0.5).astype("<i2").tobytes())
    return path


if __name__ == "__main__":
    main()
