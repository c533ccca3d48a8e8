"""How well the audio of a codec's tokens is understood: `python -m benchmarks.resynthesis MANIFEST MODEL`.

Each recording is encoded to tokens and decoded again, and Whisper transcribes both. It prints the word error rates of
the originals and of the decoded audio, and the distance of their log-mel spectra (`loss.spectral` of `slipstream train
codec`). `--out` keeps the decoded audio. It needs the extras `train` and `whisper`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.data.manifest import read_manifest
from slipstream.data.wave import write_wave
from slipstream.data.whisper import Whisper
from slipstream.evaluate.scores import error_rates
from slipstream.evaluate.transcribe import Hypothesis
from slipstream.nn.mimi import Mimi
from slipstream.train.launch import load_codec
from slipstream.train.reconstruction import multi_resolution


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="recordings with texts")
    parser.add_argument("model", help="a model, or a codec's folder, with a decoder")
    parser.add_argument("--whisper", default="base", help="the recogniser, as faster-whisper takes it")
    parser.add_argument("--limit", type=int, help="only the first recordings")
    parser.add_argument("--codebooks", type=int, help="use the first codebooks only")
    parser.add_argument("--out", type=Path, help="folder for the decoded audio")
    arguments = parser.parse_args()
    codec, recogniser = load_codec(arguments.model), Whisper(arguments.whisper)
    rate = codec.config.sample_rate
    distances: list[float] = []
    pairs: list[tuple[Hypothesis, Hypothesis]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for number, recording in enumerate(islice(read_manifest(arguments.manifest), arguments.limit)):
            heard = load(recording.audio, rate)
            said = resynthesise(codec, heard, arguments.codebooks)
            both = [torch.from_numpy(x[: len(said)])[None] for x in (said, heard)]
            distances.append(multi_resolution(both[0], both[1], rate).item())
            path = folder / f"{number:04}.wav"
            write_wave(path, said, rate)
            written = [recogniser.transcribe(one).words for one in (recording, replace(recording, audio=path))]
            original, decoded = (Hypothesis(recording, 0.0, 0.0, list(words)) for words in written)
            pairs.append((original, decoded))
    print(f"{len(pairs)} recordings; log-mel distance {np.mean(distances):.3f}")
    for name, hypotheses in zip(("original", "decoded"), zip(*pairs, strict=True), strict=True):
        errors = error_rates(hypotheses).words
        print(f"{name:9} WER {100 * errors.rate:.1f} % ({100 * errors.low:.1f} to {100 * errors.high:.1f})")


@torch.inference_mode()
def resynthesise(codec: Mimi, samples: FloatArray, codebooks: int | None = None) -> FloatArray:
    """The audio of a recording's tokens, as long as the recording."""
    config = codec.config
    padded = np.pad(samples, (0, config.blank_frames * config.frame_samples))
    codes, _ = codec.encode(torch.from_numpy(padded)[None], num_codebooks=codebooks)
    decoded, _ = codec.decode(codes[..., config.blank_frames :])
    whole = np.pad(decoded[0].clamp(-1, 1).numpy(), (config.first_sample, 0))
    said: FloatArray = whole[: len(samples)]
    return said


if __name__ == "__main__":
    main()
