"""What rounding keys and values to 8 bits changes, on the CPU, with the rounding of the kernels.

python -m benchmarks.gpu.rings error
python -m benchmarks.gpu.rings words MANIFEST [--model tiny] [--limit 48]

error  of attention's output, relative to float64, by type and context; keys with and without large channels
words  tokens that change on a model's real weights, and word errors, over recordings with known texts
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from benchmarks.common import Row, table
from torch import Tensor

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.backends.torch.runner import TorchRunner
from slipstream.bundle import ModelBundle
from slipstream.data.manifest import Recording, matching
from slipstream.evaluate.datasets import read_recordings
from slipstream.evaluate.scores import error_rates
from slipstream.evaluate.transcribe import Hypothesis
from slipstream.events import Word
from slipstream.model.text import WordDecoder
from slipstream.nn.build import build_codec, build_lm
from slipstream.nn.ring import RingFormat, dequantise, hadamard, quantise

CONTEXTS = (125, 250, 375, 750)
FORMATS = {"int8": RingFormat(int8=True), "int8, Hadamard": RingFormat(int8=True, hadamard=True)}
TAIL_SECONDS = 3.0


# -------------------------------------------------------------------------------------------------------------- error


def error() -> list[Row]:
    torch.manual_seed(0)
    rows = []
    for dim in (64, 128):
        for outliers in (False, True):
            for context in CONTEXTS:
                q, k, v = torch.randn(3, 64, context, dim, dtype=torch.float64)
                q = q[:, :1]
                if outliers:  # as trained models have them: a few channels far from the others
                    k[..., :3] *= 12
                true = attention(q, k, v)
                row: Row = {"head": dim, "large channels": "3" if outliers else "none", "context": context}
                row["bfloat16"] = share(attention(*(x.bfloat16().double() for x in (q, k, v))), true)
                row["int8"] = share(attention(q, rounded(k), rounded(v)), true)
                turned_q, turned_k = hadamard(q).double(), hadamard(k)
                row["int8, Hadamard"] = share(attention(turned_q, rounded(turned_k), rounded(v)), true)
                rows.append(row)
    return rows


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def rounded(x: Tensor) -> Tensor:
    return dequantise(*quantise(x), torch.float64)


def share(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


# -------------------------------------------------------------------------------------------------------------- words


def words(recordings: Sequence[Recording], model: str, rows: int = 8) -> list[Row]:
    bundle = ModelBundle.resolve(model)
    config, checkpoint = bundle.config, bundle.checkpoint()
    modules = build_codec(config.codec, checkpoint.codec), build_lm(config.lm, checkpoint.lm)
    exact: list[list[int]] = []
    exact_texts: list[str] = []
    table_rows = []
    for name, rings in {"float32": RingFormat(), **FORMATS}.items():
        runner = TorchRunner(config, *modules, slots=rows, buckets=(rows,), rings=rings)
        tokens = [stream for batch in batches(recordings, rows) for stream in transcribe(runner, batch)]
        exact = exact or tokens
        changed = sum(a != b for one, other in zip(tokens, exact, strict=True) for a, b in zip(one, other, strict=True))
        hypotheses = [
            Hypothesis(recording, len(stream) / config.codec.frame_rate, 0.0, decoded(stream, bundle))
            for recording, stream in zip(recordings, tokens, strict=True)
        ]
        group = error_rates(hypotheses)
        count = sum(map(len, exact))
        texts = [hypothesis.text for hypothesis in hypotheses]
        exact_texts = exact_texts or texts
        same_text = sum(text == other for text, other in zip(texts, exact_texts, strict=True))
        table_rows.append(
            {"rings": name, "tokens": count, "changed": changed, "changed %": 100 * changed / count}
            | {"recordings": len(recordings), "same text": same_text, "WER %": 100 * group.words.rate}
        )
    return table_rows


def batches(recordings: Sequence[Recording], rows: int) -> Iterator[Sequence[Recording]]:
    ordered = range(0, len(recordings), rows)
    return (recordings[start : start + rows] for start in ordered)


def transcribe(runner: TorchRunner, recordings: Sequence[Recording]) -> list[list[int]]:
    """The tokens of each recording and of the silence after it."""
    runner.reset(range(runner.slots))
    size = runner.frame_samples
    streams: list[FloatArray] = []
    for recording in recordings:
        samples = load(recording.audio)
        frames = -(-(len(samples) + round(TAIL_SECONDS * size * runner.frame_rate)) // size)
        streams.append(np.pad(samples, (0, frames * size - len(samples))).reshape(frames, size))
    tokens: list[list[int]] = [[] for _ in streams]
    for t in range(max(map(len, streams))):
        active_B = np.array([row < len(streams) and t < len(streams[row]) for row in range(runner.slots)])
        pcm_BS = np.zeros((runner.slots, size), np.float32)
        for row in np.flatnonzero(active_B):
            pcm_BS[row] = streams[row][t]
        output = runner.step(pcm_BS, active_B)
        for row in np.flatnonzero(active_B):
            tokens[row].append(int(output.token_B[row]))
    return tokens


def decoded(tokens: Sequence[int], bundle: ModelBundle) -> list[Word]:
    config = bundle.config
    decoder = WordDecoder(bundle.tokenizer, config.delay_frames, config.codec.frame_rate, partials=False)
    events = [event for token in tokens for event in decoder.push(token, 0.0)] + list(decoder.flush())
    return [event for event in events if isinstance(event, Word)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("error")
    of_words = parts.add_parser("words")
    of_words.add_argument("manifest")
    of_words.add_argument("--model", default="tiny")
    of_words.add_argument("--limit", type=int, default=48)
    of_words.add_argument("--dataset")
    of_words.add_argument("--split", default="dev")
    options = parser.parse_args()
    if options.part == "error":
        rows = error()
    else:
        chosen = matching(
            read_recordings(options.manifest), options.manifest, dataset=options.dataset, split=options.split
        )
        rows = words(list(islice(chosen, options.limit)), options.model)
    print(table(rows))


if __name__ == "__main__":
    main()
