"""Mimi, the streaming neural codec: 24 kHz audio to 12.5 frames of tokens per second, and back.

SEANet, a causal Transformer at 25 Hz, a stride-2 convolution, a split residual vector quantiser; the decoder mirrors
it (Moshi, arXiv:2410.00037, section 3.3). Shapes: B slots, S samples, T frames, K codebooks, D latent width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.model.config import CodecConfig, SEANetConfig
from slipstream.model.numerics import CODEBOOK_EPS, WHISPER_POSITIONS
from slipstream.nn.layers import CausalConv1d, CausalConvTranspose1d, Transformer
from slipstream.nn.mel import LogMel
from slipstream.nn.ring import RingFormat
from slipstream.nn.state import State
from slipstream.nn.whisper import WhisperEncoder


class Mimi(nn.Module):
    """The codec. `encode` and `decode` take a state from `encoder_state` and `decoder_state`, or None for offline."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        front_end = config.whisper or config.mel
        self.mel = LogMel(front_end, config.sample_rate) if front_end else None
        self.encoder: SEANetEncoder | WhisperEncoder
        if config.whisper:
            self.encoder = WhisperEncoder(config.whisper)
        else:
            self.encoder = SEANetEncoder(config)
            self.encoder_transformer = Transformer(config.transformer)
        self.quantizer = SplitResidualVQ(config)
        if config.stride > 1:
            self.downsample = CausalConv1d(
                config.dim, config.dim, 2 * config.stride, stride=config.stride, bias=False, replicate=True
            )
        if config.has_decoder:
            shape, width, stride = config.decoder_shape, config.output_dim, config.decoder_stride
            if stride > 1:
                self.upsample = CausalConvTranspose1d(width, width, 2 * stride, stride=stride, groups=width, bias=False)
            self.decoder_transformer = Transformer(shape.transformer)
            self.decoder = SEANetDecoder(shape)

    def encoder_state(self, batch: int, rings: RingFormat | None = None) -> State:
        """State of `batch` fresh streams to encode."""
        state: dict[str, State] = {}
        if isinstance(self.encoder, WhisperEncoder):
            state["encoder"] = self.encoder.init_state(batch, self.config.stride, rings)
        else:
            state["encoder"] = self.encoder.init_state(batch)
            state["transformer"] = self.encoder_transformer.init_state(batch, self.config.stride, rings)
        if self.mel is not None:
            state["mel"] = self.mel.init_state(batch)
        if self.config.stride > 1:
            state["downsample"] = self.downsample.init_state(batch)
        return state

    def set_first_frame(self, state: State, slots: Tensor, frame: int) -> None:
        """Set the number of the first frame of fresh streams, in place: a Whisper encoder's positions start there."""
        if isinstance(self.encoder, WhisperEncoder):
            encoder = cast("dict[str, dict[str, Tensor]]", state)["encoder"]
            encoder["start"][slots] = frame * self.config.stride % WHISPER_POSITIONS

    def decoder_state(self, batch: int) -> State:
        """State of `batch` fresh streams to decode."""
        state: dict[str, State] = {
            "transformer": self.decoder_transformer.init_state(batch, self.config.decoder_stride),
            "decoder": self.decoder.init_state(batch),
        }
        if self.config.decoder_stride > 1:
            state["upsample"] = self.upsample.init_state(batch)
        return state

    def encode(
        self, x_BS: Tensor, state: State | None = None, num_codebooks: int | None = None
    ) -> tuple[Tensor, State | None]:
        """Samples `[B, S]` to codes `[B, K, T]`, the first `num_codebooks` of them (all by default).

        Offline, S is padded with zeros to whole frames; with a state it must be whole frames.
        """
        latent_BDT, state = self.latent(x_BS, state)
        return self.quantizer.encode(latent_BDT, num_codebooks), state

    def latent(self, x_BS: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """Samples `[B, S]` to the latent `[B, D, T]` that the quantiser reads."""
        frame = self.config.frame_samples
        if state is None:
            latent, _ = self._latent(F.pad(x_BS, (0, -x_BS.shape[-1] % frame)), None)
            return latent, None
        if x_BS.shape[-1] % frame or not x_BS.shape[-1]:
            raise ValueError(f"a stream advances by whole frames of {frame} samples, not by {x_BS.shape[-1]}")
        latents = []
        for piece_BS in x_BS.split(frame, dim=-1):
            latent, state = self._latent(piece_BS, state)
            latents.append(latent)
        return torch.cat(latents, dim=-1), state

    def _latent(self, x_BS: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        old = cast("dict[str, State | None]", state) if state is not None else dict.fromkeys(_ENCODER_PARTS)
        new: dict[str, State | None] = {}
        x = x_BS[:, None]
        if self.mel is not None:
            x, new["mel"] = self.mel(x, old["mel"])
        x, new["encoder"] = self.encoder(x, old["encoder"])
        if self.config.whisper is None:
            x, new["transformer"] = self.encoder_transformer(x.transpose(1, 2), old["transformer"])
        x = x.transpose(1, 2)
        if self.config.stride > 1:
            x, new["downsample"] = self.downsample(x, old["downsample"])
        return x, (cast(State, new) if state is not None else None)

    def decode(self, codes_BKT: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """Codes `[B, K, T]` to samples `[B, S]`, S = T frames. K may be fewer than all codebooks."""
        if not self.config.has_decoder:
            raise ValueError("this codec reads log-mel frames and has no decoder: `slipstream train codec` trains one")
        x_BDT = self.quantizer.decode(codes_BKT)
        if state is None:
            y, _ = self.synthesise(x_BDT)
            return y, None
        pieces = []
        for piece_BD1 in x_BDT.split(1, dim=-1):
            y, state = self.synthesise(piece_BD1, state)
            pieces.append(y)
        return torch.cat(pieces, dim=-1), state

    def synthesise(self, x_BDT: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """A quantised latent `[B, D, T]` to samples `[B, S]`; with a state, T is 1."""
        old = cast("dict[str, State | None]", state) if state is not None else dict.fromkeys(_DECODER_PARTS)
        new: dict[str, State | None] = {}
        if self.config.decoder_stride > 1:
            x_BDT, new["upsample"] = self.upsample(x_BDT, old["upsample"])
        x, new["transformer"] = self.decoder_transformer(x_BDT.transpose(1, 2), old["transformer"])
        x, new["decoder"] = self.decoder(x.transpose(1, 2), old["decoder"])
        return x[:, 0], (cast(State, new) if state is not None else None)


_ENCODER_PARTS = ("mel", "encoder", "transformer", "downsample")
_DECODER_PARTS = ("upsample", "transformer", "decoder")


# ---------------------------------------------------------------------------------------------- SEANet


class Residual(nn.Module):
    """`x + conv2(elu(conv1(elu(x))))`, the inner width compressed."""

    def __init__(self, width: int, config: SEANetConfig, dilation: int) -> None:
        super().__init__()
        hidden = width // config.compress
        self.conv1 = CausalConv1d(width, hidden, config.residual_kernel_size, dilation=dilation)
        self.conv2 = CausalConv1d(hidden, width, 1)

    def init_state(self, batch: int) -> Tensor:
        return self.conv1.init_state(batch)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.conv1(x, state, elu=True)
        y, _ = self.conv2(F.elu(y))  # a kernel of one has no context
        return x + y, state


class EncoderStage(nn.Module):
    """Residual blocks, then a strided convolution that doubles the width."""

    def __init__(self, width: int, ratio: int, config: SEANetConfig) -> None:
        super().__init__()
        self.residuals = _residuals(width, config)
        self.resample = CausalConv1d(width, 2 * width, 2 * ratio, stride=ratio)

    def init_state(self, batch: int) -> list[State]:
        return [_init(r, batch) for r in self.residuals] + [self.resample.init_state(batch)]

    def forward(self, x: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        new = []
        for i, residual in enumerate(self.residuals):
            x, tail = residual(x, None if state is None else state[i])
            new.append(tail)
        x, tail = self.resample(x, None if state is None else state[-1], elu=True)
        return x, [*new, tail]


class DecoderStage(nn.Module):
    """A transposed convolution that halves the width, then residual blocks."""

    def __init__(self, width: int, ratio: int, config: SEANetConfig) -> None:
        super().__init__()
        self.resample = CausalConvTranspose1d(width, width // 2, 2 * ratio, stride=ratio)
        self.residuals = _residuals(width // 2, config)

    def init_state(self, batch: int) -> list[State]:
        return [self.resample.init_state(batch)] + [_init(r, batch) for r in self.residuals]

    def forward(self, x: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        x, tail = self.resample(F.elu(x), None if state is None else state[0])
        new = [tail]
        for i, residual in enumerate(self.residuals):
            x, tail = residual(x, None if state is None else state[i + 1])
            new.append(tail)
        return x, new


class _SEANet(nn.Module):
    """A convolution, the stages, and another convolution."""

    conv_in: CausalConv1d
    stages: nn.ModuleList
    conv_out: CausalConv1d

    def init_state(self, batch: int) -> list[State]:
        return [_init(part, batch) for part in (self.conv_in, *self.stages, self.conv_out)]

    def forward(self, x: Tensor, state: list[State] | None = None) -> tuple[Tensor, list[State]]:
        old: list[State] | list[None] = [None] * (len(self.stages) + 2) if state is None else state
        new: list[State] = []
        for i, part in enumerate((self.conv_in, *self.stages, self.conv_out)):
            x, tail = part(x, old[i], elu=True) if part is self.conv_out else part(x, old[i])
            new.append(tail)
        return x, new


class SEANetEncoder(_SEANet):
    """`[B, 1 or mel bands, S] -> [B, D, S / hop]`."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        width = config.num_filters
        self.conv_in = CausalConv1d(config.mel.n_mels if config.mel else 1, width, config.kernel_size)
        self.stages = nn.ModuleList()
        for ratio in reversed(config.ratios):
            self.stages.append(EncoderStage(width, ratio, config))
            width *= 2
        self.conv_out = CausalConv1d(width, config.dim, config.last_kernel_size)


class SEANetDecoder(_SEANet):
    """`[B, D, T] -> [B, 1, T * hop]`."""

    def __init__(self, config: SEANetConfig) -> None:
        super().__init__()
        width = config.num_filters * 2 ** len(config.ratios)
        self.conv_in = CausalConv1d(config.transformer.dim, width, config.kernel_size)
        self.stages = nn.ModuleList()
        for ratio in config.ratios:
            self.stages.append(DecoderStage(width, ratio, config))
            width //= 2
        self.conv_out = CausalConv1d(width, 1, config.last_kernel_size)


def _residuals(width: int, config: SEANetConfig) -> nn.ModuleList:
    return nn.ModuleList(Residual(width, config, config.dilation_base**j) for j in range(config.num_residual_layers))


def _init(module: nn.Module, batch: int) -> State:
    return cast(State, module.init_state(batch))  # type: ignore[operator]


# ------------------------------------------------------------------------------------------- quantiser


class Codebook(nn.Module):
    """Vectors and how often each is used: a vector is `embedding_sum / cluster_usage`, both moving averages.

    `refresh` recomputes the vectors: it runs after a state dict is loaded; call it after the averages change.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding_sum: Tensor
        self.cluster_usage: Tensor
        self.vectors: Tensor
        self.half_norms: Tensor
        self.register_buffer("embedding_sum", torch.zeros(size, dim))
        self.register_buffer("cluster_usage", torch.ones(size))
        self.register_buffer("vectors", torch.zeros(size, dim), persistent=False)
        self.register_buffer("half_norms", torch.zeros(size), persistent=False)
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def refresh(self) -> None:
        self.vectors = self.embedding_sum / self.cluster_usage.clamp(min=CODEBOOK_EPS)[:, None]
        self.half_norms = self.vectors.square().sum(dim=1) / 2

    def nearest(self, x: Tensor) -> Tensor:
        """Index of the nearest vector to each of `x [..., dim]`."""
        # |x - c|^2 / 2 = |c|^2 / 2 - x.c + a term of x alone
        scores = torch.addmm(self.half_norms, x.flatten(0, -2), self.vectors.T, beta=-1)
        return scores.argmax(dim=-1).view(x.shape[:-1])

    def forward(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.vectors)


def _refresh(codebook: nn.Module, _: object) -> None:
    cast(Codebook, codebook).refresh()


class ResidualVQ(nn.Module):
    """Each codebook quantises the residual of the codebooks before it."""

    def __init__(self, config: CodecConfig, num_codebooks: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(config.dim, config.codebook_dim, bias=False)
        self.codebooks = nn.ModuleList(
            Codebook(config.codebook_size, config.codebook_dim) for _ in range(num_codebooks)
        )
        self.output_proj = nn.Linear(config.codebook_dim, config.output_dim, bias=False)

    def encode(self, x_BTD: Tensor, num_codebooks: int) -> Tensor:
        """Latent `[B, T, D]` to codes `[B, T, K]`."""
        residual = self.input_proj(x_BTD)
        codes = []
        for codebook in self.codebooks[:num_codebooks]:
            code = cast(Codebook, codebook).nearest(residual)
            residual = residual - codebook(code)
            codes.append(code)
        return torch.stack(codes, dim=-1)

    def decode(self, codes_BTK: Tensor) -> Tensor:
        """Codes `[B, T, K]` to the latent `[B, T, D]`."""
        parts = [book(codes_BTK[..., k]) for k, book in enumerate(self.codebooks[: codes_BTK.shape[-1]])]
        latent: Tensor = self.output_proj(torch.stack(parts).sum(dim=0))
        return latent


class SplitResidualVQ(nn.Module):
    """Two residual quantisers: the first codebooks carry meaning, the others sound."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.num_semantic = config.num_semantic
        self.num_codebooks = config.num_codebooks
        self.semantic = ResidualVQ(config, config.num_semantic)
        self.acoustic = ResidualVQ(config, config.num_codebooks - config.num_semantic)

    def encode(self, x_BDT: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Latent `[B, D, T]` to the first `num_codebooks` codes `[B, K, T]`."""
        K = self.num_codebooks if num_codebooks is None else num_codebooks
        if not self.num_semantic <= K <= self.num_codebooks:
            raise ValueError(f"num_codebooks={K}: expected {self.num_semantic} to {self.num_codebooks}")
        x_BTD = x_BDT.transpose(1, 2)
        codes = self.semantic.encode(x_BTD, self.num_semantic)
        if self.num_semantic < K:
            codes = torch.cat([codes, self.acoustic.encode(x_BTD, K - self.num_semantic)], dim=-1)
        return codes.transpose(1, 2)

    def decode(self, codes_BKT: Tensor) -> Tensor:
        """Codes `[B, K, T]` to the latent `[B, D, T]`."""
        codes_BTK = codes_BKT.transpose(1, 2)
        latent = self.semantic.decode(codes_BTK[..., : self.num_semantic])
        if codes_BTK.shape[-1] > self.num_semantic:
            latent = latent + self.acoustic.decode(codes_BTK[..., self.num_semantic :])
        return latent.transpose(1, 2)
