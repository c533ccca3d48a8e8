"""Bytes that a step must move and operations that it must do, part by part, from the shapes.

Each byte counts once per step: weights, rings, inputs and outputs of each product. A multiplication with an addition is
two operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slipstream.model.config import STTConfig, TransformerConfig
from slipstream.nn.layers import Transformer
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Mimi


@dataclass(frozen=True)
class Device:
    """A device's limits: bytes per second, operations per second in the LM's type and in the codec's float32."""

    bandwidth: float
    lm_rate: float
    codec_rate: float


@dataclass(frozen=True)
class Part:
    """One part of a step of `streams` streams: bytes moved and operations done, at the `rate` of its type."""

    name: str
    bytes: float
    flops: float
    rate: float

    def bound(self, device: Device) -> float:
        """The least seconds that the part can take."""
        return max(self.bytes / device.bandwidth, self.flops / self.rate)


def parts(config: STTConfig, streams: int, device: Device, lm_bytes: int = 2) -> list[Part]:
    """The parts of a step at full context; `lm_bytes`: of a number of the LM's weights and keys."""
    codec, lm = products(config)
    frame = config.codec.stride  # positions that the codec's Transformer processes per step
    capacity = config.codec.transformer.context + frame - 1
    books = config.lm.num_codebooks * config.codec.codebook_size * config.codec.codebook_dim
    rows = config.lm.num_codebooks * config.codec.codebook_size
    ring = ring_numbers(config.lm.transformer, config.lm.transformer.context)
    codec_ring = ring_numbers(config.codec.transformer, capacity)
    return [
        _products("codec: convolutions", codec["convolutions"], streams, 4, device.codec_rate),
        _products("codec: Transformer products", codec["transformer"], streams, 4, device.codec_rate),
        Part("codec: attention", 4 * streams * codec_ring, 2 * streams * codec_ring * frame, device.codec_rate),
        Part("codec: quantiser", 4 * (books + streams * rows), 2 * streams * books, device.codec_rate),
        _products("LM: products", lm["transformer"], streams, lm_bytes, device.lm_rate),
        Part("LM: attention", lm_bytes * streams * ring, 2 * streams * ring, device.lm_rate),
        _products("LM: heads", lm["heads"], streams, lm_bytes, device.lm_rate),
    ]


def ring_numbers(config: TransformerConfig, columns: int) -> int:
    """Count the numbers in one stream's keys and values."""
    return 2 * config.num_layers * config.dim * columns


@dataclass
class Count:
    """Products over one frame of one stream: numbers in weights, numbers in and out, operations."""

    weights: int = 0
    moved: int = 0
    flops: int = 0


def products(config: STTConfig) -> tuple[dict[str, Count], dict[str, Count]]:
    """Convolutions and linear layers of a frame, found by running the modules on the meta device."""
    with torch.device("meta"):
        codec, lm = Mimi(config.codec), LM(config.lm)
        codec_parts = {"convolutions": Count(), "transformer": Count()}
        lm_parts = {"transformer": Count(), "heads": Count()}
        for module in codec.modules():
            if isinstance(module, nn.Conv1d):
                _count(module, codec_parts["convolutions"])
        _count_linear(codec.encoder_transformer, codec_parts["transformer"])
        _count_linear(lm.transformer, lm_parts["transformer"])
        _count(lm.text_linear, lm_parts["heads"])
        codec.encode(torch.empty(1, config.codec.frame_samples), codec.encoder_state(1), config.lm.num_codebooks)
        tokens = torch.zeros(1, 1, dtype=torch.int64)
        codes = torch.zeros(1, config.lm.num_codebooks, 1, dtype=torch.int64)
        lm.text_logits(lm(tokens, codes, lm.init_state(1))[0])
    return codec_parts, lm_parts


def _products(name: str, count: Count, streams: int, number_bytes: int, rate: float) -> Part:
    return Part(name, number_bytes * (count.weights + streams * count.moved), streams * count.flops, rate)


def _count_linear(transformer: Transformer, count: Count) -> None:
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            _count(module, count)


def _count(module: nn.Conv1d | nn.Linear, count: Count) -> None:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
        y = output[0] if isinstance(output, tuple) else output
        channels = module.weight.shape[0]
        count.weights += module.weight.numel()
        count.moved += inputs[0].numel() + y.numel()
        count.flops += 2 * module.weight.numel() * (y.numel() // channels)

    module.register_forward_hook(hook)
