"""Milliseconds per frame of the MLX backend, compared with the `moshi_mlx` package in the same run.

    python -m benchmarks.apple
    python -m benchmarks.apple --parts layer --bits 8 --steps 200

`tiny`: a whole small model, samples to text token. `layer`: one layer of stt-1b's LM with its embeddings and heads,
audio tokens to text token. Both have full windows, a batch of one and random weights: the time of a step does not
depend on them. The two packages take turns of five steps, so that other load affects both. The times are medians over
all steps, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from benchmarks.common import Step, race
from benchmarks.models import SMALL, RandomWeights
from moshi_mlx.models import Lm, LmConfig, LmGen
from moshi_mlx.models.mimi import Mimi, mimi_202407
from moshi_mlx.utils import Sampler

from slipstream.backends.mlx.build import build_lm
from slipstream.backends.mlx.runner import MLXRunner
from slipstream.backends.mlx.state import Ring, commit
from slipstream.checkpoints.kyutai import dump_kyutai
from slipstream.checkpoints.mimi import codec_table
from slipstream.checkpoints.mlx import lm_table, quantized
from slipstream.checkpoints.presets import PRESETS
from slipstream.checkpoints.quantization import GROUP_SIZES
from slipstream.checkpoints.tensors import Array, write_tensors
from slipstream.model.config import CodecConfig, STTConfig
from slipstream.model.names import codec_shapes, lm_shapes

PUBLISHED = PRESETS["kyutai/stt-1b-en_fr"]
LAYER = PUBLISHED.model_copy(
    update={
        "lm": PUBLISHED.lm.model_copy(
            update={"transformer": PUBLISHED.lm.transformer.model_copy(update={"num_layers": 1})}
        )
    }
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["tiny", "layer"], default=["tiny", "layer"])
    parser.add_argument("--bits", nargs="+", type=int, choices=[32, *GROUP_SIZES], default=[32, 8, 4], help="of the LM")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for part in options.parts:
        for bits in options.bits:
            quantize = None if bits == 32 else bits
            ours, theirs = whole_model(SMALL, quantize) if part == "tiny" else lm_alone(LAYER, quantize)
            median = [statistics.median(times) * 1000 for times in race(ours, theirs, options.steps)]
            rows.append({"part": part, "bits": bits, "slipstream_ms": median[0], "moshi_mlx_ms": median[1]})
            rows[-1]["ratio"] = median[1] / median[0]
            mx.clear_cache()
    if options.json:
        print(json.dumps(rows))
        return
    print(f"mlx {mx.__version__}, {mx.default_device()}, ms per frame")
    print("part   bits  slipstream  moshi_mlx  moshi_mlx/slipstream")
    for row in rows:
        print("{part:5}  {bits:4}  {slipstream_ms:10.2f}  {moshi_mlx_ms:9.2f}  {ratio:.2f}".format(**row))


def whole_model(config: STTConfig, quantize: int | None) -> tuple[Step, Step]:
    """A step from samples to text token, by each package."""
    lm, codec = dict(RandomWeights(lm_shapes(config.lm))), dict(RandomWeights(codec_shapes(config.codec)))
    runner = MLXRunner(config, lm, codec, quantize=quantize)
    frame, active = np.random.default_rng(0).standard_normal((1, 1920), dtype=np.float32), np.ones(1, dtype=bool)
    mimi = their_mimi(config.codec, codec)
    generator = their_generator(config, lm, quantize)

    def theirs() -> None:
        codes = mimi.encode_step(mx.array(frame[None]))
        generator.step(codes[..., 0])[0].item()

    for _ in range(config.lm.transformer.context):
        runner.step(frame, active)
        theirs()
    return lambda: runner.step(frame, active), theirs


def lm_alone(config: STTConfig, quantize: int | None) -> tuple[Step, Step]:
    """A step from audio tokens to text token, by each package."""
    weights = dict(RandomWeights(lm_shapes(config.lm)))
    lm = build_lm(config.lm, weights, quantize=quantize)
    codes = np.random.default_rng(0).integers(0, config.lm.audio_vocab, (1, config.lm.num_codebooks)).astype(np.int32)
    condition = lm.condition({})
    state: tuple[mx.array, list[Ring]] = (mx.array([3]), lm.init_state(1))
    position = np.array([config.lm.transformer.context])

    @mx.compile
    def compiled(state, codes, at, active):  # type: ignore[no-untyped-def]
        text, rings = state
        hidden, new_rings = lm(text, codes, rings, at, condition)
        new_text = mx.argmax(lm.text_logits(hidden), axis=-1).astype(mx.int32)
        return commit(text, new_text, active), new_rings

    def ours() -> int:
        nonlocal state, position
        state = compiled(state, mx.array(codes), lm.transformer.locate(position), mx.array([True]))
        mx.eval(state)
        position += 1
        return state[0].item()

    generator = their_generator(config, weights, quantize)

    def theirs() -> int:
        return generator.step(mx.array(codes))[0].item()

    cache, T = generator.model.transformer_cache[0].self_attn, config.lm.transformer
    past = mx.zeros((1, T.num_heads, T.context, T.head_dim))
    mx.eval(cache.update_and_fetch(past, past))
    return ours, theirs


def their_generator(config: STTConfig, weights: dict[str, Array], quantize: int | None) -> LmGen:
    model = Lm(LmConfig.from_config_dict(dump_kyutai(config)))
    tensors = lm_table(config.lm).write(weights)
    if quantize is not None:
        nn.quantize(model, bits=quantize, group_size=GROUP_SIZES[quantize])
        tensors = quantized(tensors, quantize)
    model.load_weights([(name, mx.array(array)) for name, array in tensors.items()], strict=True)
    mx.eval(model.parameters())
    return LmGen(model, max_steps=4096, text_sampler=Sampler(temp=0), audio_sampler=Sampler(temp=0))


def their_mimi(config: CodecConfig, weights: dict[str, Array]) -> Mimi:
    published, transformer = mimi_202407(config.num_codebooks), config.transformer
    model = Mimi(
        dataclasses.replace(
            published,
            seanet=dataclasses.replace(published.seanet, dimension=config.dim, nfilters=config.num_filters),
            transformer=dataclasses.replace(
                published.transformer,
                d_model=config.dim,
                num_heads=transformer.num_heads,
                num_layers=transformer.num_layers,
                dim_feedforward=transformer.ffn_dim,
                context=transformer.context,
            ),
            quantizer_bins=config.codebook_size,
            quantizer_dim=config.codebook_dim,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mimi.safetensors"
        write_tensors(path, codec_table(config).write(weights))
        model.load_pytorch_weights(str(path))
        mx.eval(model.parameters())
    return model


if __name__ == "__main__":
    main()
