"""Mimi's encoder, the streaming neural codec: 24 kHz audio to 12.5 frames of tokens per second.

SEANet, a causal Transformer at 25 Hz, a stride-2 convolution, a split residual vector quantiser (Moshi,
arXiv:2410.00037, section 3.3). There is no decoder, because speech to text does not decode.
Shapes: B slots, S samples, T frames, C channels, K codebooks, D latent width.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from slipstream.arrays import IntArray
from slipstream.backends.mlx.layers import CausalConv1d, Positions, Transformer
from slipstream.backends.mlx.mel import LogMel
from slipstream.backends.mlx.whisper import WhisperEncoder, WhisperPositions
from slipstream.model.config import CodecConfig


class Mimi(nn.Module):
    """The codec's encoder, one frame at a time."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        if front_end := config.whisper or config.mel:
            self.mel = LogMel(front_end, config.sample_rate)
        if config.whisper is not None:
            self.encoder: SEANetEncoder | WhisperEncoder = WhisperEncoder(config.whisper, config.stride)
        else:
            self.encoder = SEANetEncoder(config)
            self.encoder_transformer = Transformer(config.transformer, config.stride)
        if config.stride > 1:
            self.downsample = CausalConv1d(
                config.dim, config.dim, 2 * config.stride, stride=config.stride, bias=False, replicate=True
            )
        self.quantizer = SplitResidualVQ(config)

    def init_state(self, batch: int) -> dict[str, Any]:
        """State of `batch` fresh streams."""
        state: dict[str, Any] = {"encoder": self.encoder.init_state(batch)}
        if self.config.whisper is None:
            state["transformer"] = self.encoder_transformer.init_state(batch, mx.float32)
        if "mel" in self:
            state["mel"] = self.mel.init_state(batch)
        if self.config.stride > 1:
            state["downsample"] = self.downsample.init_state(batch)
        return state

    def locate(self, frames_B: IntArray, start_B: IntArray) -> Positions | WhisperPositions:
        """Positions of the next frame of slots that have processed `frames_B` frames, from number `start_B` on."""
        first_B = frames_B * self.config.stride
        if isinstance(self.encoder, WhisperEncoder):
            return self.encoder.locate(first_B, start_B * self.config.stride)
        return self.encoder_transformer.locate(first_B)

    def encode(
        self, x_BS: mx.array, state: dict[str, Any], at: Positions | WhisperPositions, num_codebooks: int
    ) -> tuple[mx.array, dict[str, Any]]:
        """One frame of samples `[B, S]` to its first `num_codebooks` codes `[B, 1, K]`."""
        new: dict[str, Any] = {}
        x = x_BS[..., None]
        if "mel" in self:
            x, new["mel"] = self.mel(x, state["mel"])
        if isinstance(self.encoder, WhisperEncoder):
            assert isinstance(at, WhisperPositions)
            x, new["encoder"] = self.encoder(x, state["encoder"], at)
        else:
            assert isinstance(at, Positions)
            x, new["encoder"] = self.encoder(x, state["encoder"])
            x, new["transformer"] = self.encoder_transformer(x, state["transformer"], at)
        if self.config.stride > 1:
            x, new["downsample"] = self.downsample(x, state["downsample"])
        return self.quantizer.encode(x, num_codebooks), new


# ---------------------------------------------------------------------------------------------- SEANet


class Residual(nn.Module):
    """`x + conv2(elu(conv1(elu(x))))`, the inner width compressed."""

    def __init__(self, width: int, config: CodecConfig, dilation: int) -> None:
        super().__init__()
        hidden = width // config.compress
        self.conv1 = CausalConv1d(width, hidden, config.residual_kernel_size, dilation=dilation)
        self.conv2 = nn.Linear(hidden, width)  # a kernel of one

    def init_state(self, batch: int) -> mx.array:
        return self.conv1.init_state(batch)

    def __call__(self, x: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
        y, state = self.conv1(nn.elu(x), state)
        return x + self.conv2(nn.elu(y)), state


class EncoderStage(nn.Module):
    """Residual blocks, then a strided convolution that doubles the width."""

    def __init__(self, width: int, ratio: int, config: CodecConfig) -> None:
        super().__init__()
        self.residuals = [Residual(width, config, config.dilation_base**j) for j in range(config.num_residual_layers)]
        self.resample = CausalConv1d(width, 2 * width, 2 * ratio, stride=ratio)

    def init_state(self, batch: int) -> list[Any]:
        return [part.init_state(batch) for part in (*self.residuals, self.resample)]

    def __call__(self, x: mx.array, state: list[mx.array]) -> tuple[mx.array, list[Any]]:
        new: list[Any] = []
        for residual, tail in zip(self.residuals, state[:-1], strict=True):
            x, tail = residual(x, tail)
            new.append(tail)
        x, tail = self.resample(nn.elu(x), state[-1])
        return x, [*new, tail]


class SEANetEncoder(nn.Module):
    """`[B, S, 1 or mel bands] -> [B, S / hop, D]`."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        width = config.num_filters
        self.conv_in = CausalConv1d(config.mel.n_mels if config.mel else 1, width, config.kernel_size)
        self.stages = []
        for ratio in reversed(config.ratios):
            self.stages.append(EncoderStage(width, ratio, config))
            width *= 2
        self.conv_out = CausalConv1d(width, config.dim, config.last_kernel_size)

    def init_state(self, batch: int) -> list[Any]:
        return [part.init_state(batch) for part in (self.conv_in, *self.stages, self.conv_out)]

    def __call__(self, x: mx.array, state: list[Any]) -> tuple[mx.array, list[Any]]:
        first, *middle, last = state
        new: list[Any] = []
        x, tail = self.conv_in(x, first)
        new.append(tail)
        for stage, tails in zip(self.stages, middle, strict=True):
            x, tails = stage(x, tails)
            new.append(tails)
        x, tail = self.conv_out(nn.elu(x), last)
        return x, [*new, tail]


# ------------------------------------------------------------------------------------------- quantiser


class Codebook(nn.Module):
    """Vectors `[bins, dim]`, and half their squared norms."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.vectors = mx.zeros((size, dim))
        self.half_norms = mx.zeros(size)

    def nearest(self, x: mx.array) -> mx.array:
        """Index of the nearest vector to each of `x [..., dim]`."""
        # |x - c|^2 / 2 = |c|^2 / 2 - x.c + a term of x alone
        return mx.argmax(x @ self.vectors.T - self.half_norms, axis=-1)

    def __call__(self, codes: mx.array) -> mx.array:
        return self.vectors[codes]


class ResidualVQ(nn.Module):
    """Each codebook quantises the residual of the codebooks before it."""

    def __init__(self, config: CodecConfig, num_codebooks: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(config.dim, config.codebook_dim, bias=False)
        self.codebooks = [Codebook(config.codebook_size, config.codebook_dim) for _ in range(num_codebooks)]

    def encode(self, x_BTD: mx.array, num_codebooks: int) -> list[mx.array]:
        """Latent `[B, T, D]` to `num_codebooks` codes `[B, T]`."""
        residual = self.input_proj(x_BTD)
        codes = []
        for codebook in self.codebooks[:num_codebooks]:
            codes.append(codebook.nearest(residual))
            residual = residual - codebook(codes[-1])
        return codes


class SplitResidualVQ(nn.Module):
    """Two residual quantisers: the first codebooks carry meaning, the others sound."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.num_semantic = config.num_semantic
        self.semantic = ResidualVQ(config, config.num_semantic)
        self.acoustic = ResidualVQ(config, config.num_codebooks - config.num_semantic)

    def encode(self, x_BTD: mx.array, num_codebooks: int) -> mx.array:
        """Latent `[B, T, D]` to the first `num_codebooks` codes `[B, T, K]`."""
        semantic = self.semantic.encode(x_BTD, min(num_codebooks, self.num_semantic))
        acoustic = self.acoustic.encode(x_BTD, max(num_codebooks - self.num_semantic, 0))
        return mx.stack([*semantic, *acoustic], axis=-1)
