"""What configurations are made of: their base class, and the parts that a codec's encoder and decoder share.

Import them from `slipstream.model.config`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]


class Config(BaseModel):
    """A frozen, strict part of a configuration."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )


class TransformerConfig(Config):
    """A causal Transformer whose queries see the last `context` positions, including their own.

    `ffn_dim`: width between the two feed-forward layers; a gated one computes `2 * ffn_dim` and multiplies the halves.
    `layer_scale`: a learnt scale on each residual branch. `positions`: how a layer knows the order: by rotation of
    queries and keys, by sines added to the input, or not at all. `cross_attention`: after its self-attention, each
    layer attends to a sequence of conditions.
    """

    dim: Positive
    num_heads: Positive
    num_layers: Positive
    ffn_dim: Positive
    context: Positive
    max_period: Annotated[float, Field(gt=1)]
    norm: Literal["rms_norm", "layer_norm"]
    gated: bool
    layer_scale: bool = False
    positions: Literal["rope", "sin", "none"] = "rope"
    cross_attention: bool = False

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformerConfig:
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ValueError(
                f"dim={self.dim} must be num_heads={self.num_heads} times an even head width (rotary pairs)"
            )
        return self


class MelConfig(Config):
    """A fixed log-mel front end: `n_mels` bands every `hop` samples, from a causal window of `window` samples."""

    n_mels: Positive = 80
    window: Positive = 600
    hop: Positive = 240
    f_min: Annotated[float, Field(ge=0)] = 20.0
    f_max: Annotated[float, Field(gt=0)] = 8000.0


class SEANetConfig(Config):
    """SEANet and the Transformer between it and the quantiser. The defaults are the published Mimi.

    `ratios` are in the decoder's order; the encoder uses them in reverse.
    """

    num_filters: Positive = 64
    ratios: tuple[Positive, ...] = (8, 6, 5, 4)
    kernel_size: Positive = 7
    last_kernel_size: Positive = 3
    residual_kernel_size: Positive = 3
    num_residual_layers: Positive = 1
    dilation_base: Positive = 2
    compress: Positive = 2
    transformer: TransformerConfig = TransformerConfig(
        dim=512,
        num_heads=8,
        num_layers=8,
        ffn_dim=2048,
        context=250,
        max_period=10_000.0,
        norm="layer_norm",
        gated=False,
        layer_scale=True,
    )


class WhisperConfig(Config):
    """Whisper's audio encoder with limited context: log-mel bands at 100 Hz, two convolutions, layers at 50 Hz.

    The defaults are the size of Whisper base. A position sees `context` positions of the layer below, including itself,
    and `lookahead` positions after it. `mel_floor` replaces Whisper's floor, which depends on the maximum of the clip:
    bands below it (log10 of the power) are raised to it.
    """

    n_mels: Positive = 80
    dim: Annotated[int, Field(ge=4, multiple_of=2)] = 512
    num_heads: Positive = 8
    num_layers: Positive = 6
    ffn_dim: Positive = 2048
    context: Positive = 250
    lookahead: Annotated[int, Field(ge=0)] = 4
    mel_floor: float = -7.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def delay(self) -> int:
        """Positions by which a stream's output lags behind its input (24: 0.48 s)."""
        return self.num_layers * self.lookahead

    @model_validator(mode="after")
    def _heads_divide_width(self) -> WhisperConfig:
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} must be a multiple of num_heads={self.num_heads}")
        return self


class RecordingsConfig(Config):
    """What recordings have in place of live streams, for which a longer delay would be too long.

    `lookahead`: that of `WhisperConfig`. `delay_frames`: frames by which the text lags behind the audio.
    """

    lookahead: Annotated[int, Field(ge=0)]
    delay_frames: Annotated[int, Field(ge=0)]
