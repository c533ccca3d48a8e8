"""Log-mel bands of causal windows."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from slipstream.model.config import MelConfig, WhisperConfig
from slipstream.model.numerics import mel_front_end


class LogMel(nn.Module):
    """A fixed front end without learnt weights, `[B, S, 1] -> [B, S / hop, bands]`: see `numerics.MelFrontEnd`."""

    def __init__(self, config: MelConfig | WhisperConfig, sample_rate: int) -> None:
        super().__init__()
        front_end = mel_front_end(config, sample_rate)
        self.hop, self.context = front_end.hop, front_end.context
        self.floor, self.log_scale = front_end.floor, front_end.log_scale
        # The leading underscore keeps constants out of the module's parameters.
        self._fourier = mx.array(front_end.fourier[..., None])
        self._bands = mx.array(front_end.bands.T)

    def init_state(self, batch: int) -> mx.array:
        return mx.zeros((batch, self.context, 1))

    def __call__(self, x: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
        x = mx.concatenate([state, x], axis=1)
        real, imaginary = mx.split(mx.conv1d(x, self._fourier, stride=self.hop), 2, axis=-1)
        power = mx.square(real) + mx.square(imaginary)
        log_mel = mx.log(mx.maximum(power @ self._bands, self.floor)) * self.log_scale
        return (log_mel + 4) / 4, x[:, x.shape[1] - self.context :]
