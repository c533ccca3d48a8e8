"""Log-mel bands of causal windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.model.config import MelConfig, WhisperConfig
from slipstream.model.numerics import mel_front_end


class LogMel(nn.Module):
    """A fixed front end without learnt weights, `[B, 1, S] -> [B, bands, S / hop]`: see `numerics.MelFrontEnd`."""

    def __init__(self, config: MelConfig | WhisperConfig, sample_rate: int) -> None:
        super().__init__()
        front_end = mel_front_end(config, sample_rate)
        self.hop, self.context = front_end.hop, front_end.context
        self.floor, self.log_scale = front_end.floor, front_end.log_scale
        self.fourier: Tensor
        self.bands: Tensor
        self.register_buffer("fourier", torch.from_numpy(front_end.fourier)[:, None], persistent=False)
        self.register_buffer("bands", torch.from_numpy(front_end.bands), persistent=False)

    def init_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1, self.context, device=self.fourier.device, dtype=self.fourier.dtype)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.init_state(x.shape[0]) if state is None else state, x], dim=-1)
        real, imaginary = F.conv1d(x, self.fourier, stride=self.hop).chunk(2, dim=1)
        power = real.square() + imaginary.square()
        return self.scale(self.bands @ power), x[..., x.shape[-1] - self.context :]

    def scale(self, mel: Tensor) -> Tensor:
        """Convert the power in each band to what the encoder reads."""
        scaled: Tensor = (mel.clamp(min=self.floor).log() * self.log_scale + 4) / 4
        return scaled
