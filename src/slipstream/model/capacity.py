"""How many streams a GPU can run, calculated from a model's shapes, with constants measured on an H100."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from slipstream.model.config import WHISPER_RATE, CodecConfig, STTConfig, TransformerConfig
from slipstream.model.names import codec_shapes, lm_shapes
from slipstream.model.numerics import ring_capacity

ALIGNMENT = 64
"""Columns of a ring on CUDA are a multiple of this."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device: bytes of memory, bytes per second of a copy, and operations per second of three types."""

    memory: float
    bandwidth: float
    float32: float
    tf32: float
    bfloat16: float


GPUS = {
    "h100": Gpu(85.0e9, 3.0e12, 60e12, 400e12, 780e12),
    "h200": Gpu(150e9, 4.4e12, 60e12, 400e12, 780e12),
    "a100": Gpu(85.0e9, 1.7e12, 19e12, 150e12, 300e12),
    "l4": Gpu(23.6e9, 0.27e12, 28e12, 100e12, 120e12),
}

RESERVED_BYTES = 7e9
"""CUDA context, workspaces, graphs and activations: at most as much as 1,200 streams of the 1B model had on an H100."""

# Fitted to steps of 1 to 1,200 streams of both published models on an H100, which they describe to within 11 %.
# The rates of other devices are not measured.
RING_EFFICIENCY = 0.97
"""Share of the bandwidth at which the attention kernel reads rings."""
CODEC_EFFICIENCY = 0.6
"""Share of the peak at which convolutions compute."""
LM_EFFICIENCY = 0.57
"""Share of the peak at which the LM's products compute."""
LAYER_SECONDS = 36e-6
"""Fixed cost of a layer of the LM: about ten launches of a graph, each of a few microseconds."""
CODEC_SECONDS = 2.1e-3
"""Fixed cost of the codec: 2.4 ms in float32, 1.8 ms with TF32."""
PASSES = 9
"""How often a convolution's input and output move, with its activation, context and additions."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a GPU could do. Times are for full rings and all slots active.

    Attributes:
        weights: Bytes of all weights.
        stream: Bytes of the rings of one stream.
        slots: Streams that fit into memory.
        fixed_ms: Milliseconds of a step without streams.
        stream_ms: Milliseconds that each stream adds.
    """

    weights: int
    stream: int
    slots: int
    fixed_ms: float
    stream_ms: float

    def step_ms(self, streams: int) -> float:
        """Milliseconds of a step of `streams` streams."""
        return self.fixed_ms + streams * self.stream_ms

    @property
    def real_time(self) -> int:
        """Streams that fit and whose step takes less than a frame of 80 ms."""
        return max(0, min(self.slots, int((80 - self.fixed_ms) / self.stream_ms)))


def plan(config: STTConfig, gpu: Gpu, *, int8_cache: bool = True, tf32: bool = False) -> Plan:
    """Calculate what a GPU could do with this model."""
    lm_numbers = sum(math.prod(shape) for shape in lm_shapes(config.lm).values())
    codec_bytes = 4 * sum(math.prod(shape) for shape in codec_shapes(config.codec).values())
    lm_bytes = 2 * lm_numbers
    rings = stream_bytes(config, int8=int8_cache, align=ALIGNMENT)
    flops, moved = codec_work(config.codec)
    read = sum(math.prod(s) for name, s in lm_shapes(config.lm).items() if "_emb" not in name)
    fixed = config.lm.transformer.num_layers * LAYER_SECONDS + CODEC_SECONDS
    rate = CODEC_EFFICIENCY * (gpu.tf32 if tf32 else gpu.float32)
    return Plan(
        weights=lm_bytes + codec_bytes,
        stream=rings,
        slots=max(0, int((gpu.memory - RESERVED_BYTES - lm_bytes - codec_bytes) / rings)),
        fixed_ms=1e3 * (2 * read / gpu.bandwidth + fixed),
        stream_ms=1e3
        * (
            rings / (RING_EFFICIENCY * gpu.bandwidth)
            + PASSES * moved / gpu.bandwidth
            + flops / rate
            + 2 * read / (LM_EFFICIENCY * gpu.bfloat16)
        ),
    )


def stream_bytes(config: STTConfig, lm_bytes: int = 2, *, int8: bool = False, align: int = 1) -> int:
    """Bytes of one stream's rings: float32 in the codec, and in the LM `lm_bytes` per number or 1 with its scales."""
    codec = config.codec
    if codec.whisper:
        whisper = codec.whisper
        columns = _aligned(ring_capacity(whisper.context, codec.stride, whisper.lookahead), align)
        codec_bytes = 4 * 2 * whisper.num_layers * whisper.dim * columns
    else:
        codec_bytes = _ring_bytes(codec.transformer, codec.stride, 4, align)
    lm = config.lm
    contexts = [lm.transformer.context] + ([lm.whisper.audio_columns] if lm.whisper else [])
    shapes = (lm.transformer.model_copy(update={"context": context}) for context in contexts)
    return codec_bytes + sum(_ring_bytes(shape, 1, 1 if int8 else lm_bytes, align, scales=int8) for shape in shapes)


def _ring_bytes(config: TransformerConfig, step: int, number: int, align: int, scales: bool = False) -> int:
    columns = _aligned(ring_capacity(config.context, step), align)
    return 2 * config.num_layers * columns * (number * config.dim + (4 * config.num_heads if scales else 0))


def _aligned(columns: int, align: int) -> int:
    return -(-columns // align) * align


def codec_work(config: CodecConfig) -> tuple[float, float]:
    """Operations of one frame in the encoder, and bytes of its layers' inputs and outputs."""
    flops = moved = 0.0
    for name, shape in codec_shapes(config).items():
        if len(shape) < 2 or not name.startswith(("encoder", "downsample", "quantizer")) or "codebooks" in name:
            continue
        positions = _positions(config, name)
        flops += 2 * math.prod(shape) * positions
        moved += 4 * positions * (shape[0] + shape[1])
    return flops, moved


def _positions(config: CodecConfig, name: str) -> float:
    """How often a layer runs per frame."""
    if name.startswith(("quantizer", "downsample")):
        return 1
    if config.whisper:
        return 2 * WHISPER_RATE / config.frame_rate if ".conv1" in name else WHISPER_RATE / config.frame_rate
    stage = re.match(r"encoder\.stages\.(\d+)\.(resample)?", name)
    if name.startswith("encoder_transformer") or "conv_out" in name:
        return config.stride
    hops = list(reversed(config.ratios))
    before = int(stage[1]) + (1 if stage[2] else 0) if stage else 0
    return config.stride * math.prod(hops) / math.prod(hops[:before])
