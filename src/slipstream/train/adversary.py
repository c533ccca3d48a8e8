"""A discriminator for the waveform codec: it learns to distinguish the codec's output from the original.

Multi-scale STFT discriminator, hinge loss and feature matching (EnCodec, arXiv:2210.13438, section 3.4).
Shapes: B rows, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from slipstream.train.options import DiscriminatorOptions

Judged = list[tuple[Tensor, list[Tensor]]]
"""For each scale: a score, high for the original, at each place in time and frequency; and every layer's output."""


class Discriminator(nn.Module):
    """Convolutions over complex spectrograms, a stack of them for each window length; `filters` channels in each."""

    def __init__(self, windows: Sequence[int], filters: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_Scale(window, filters) for window in windows)

    def forward(self, x_BS: Tensor) -> Judged:
        return [scale(x_BS) for scale in self.scales]


class _Scale(nn.Module):
    def __init__(self, window: int, filters: int) -> None:
        super().__init__()
        self.window = window
        # Kernels span time and frequency; dilated over time, strided over frequency.
        self.convs = nn.ModuleList(
            [
                _conv(2, filters, (3, 9)),
                *(_conv(filters, filters, (3, 9), dilation=dilation, stride=2) for dilation in (1, 2, 4)),
                _conv(filters, filters, (3, 3)),
            ]
        )
        self.score = _conv(filters, 1, (3, 3))

    def forward(self, x_BS: Tensor) -> tuple[Tensor, list[Tensor]]:
        hann = torch.hann_window(self.window, device=x_BS.device)
        spectrum = torch.stft(
            x_BS.float(), self.window, self.window // 4, window=hann, normalized=True, return_complex=True
        )
        x = torch.stack([spectrum.real, spectrum.imag], dim=1).transpose(2, 3).to(next(self.parameters()).dtype)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
            features.append(x)
        return self.score(x), features


def discriminator_of(options: DiscriminatorOptions | None) -> Discriminator | None:
    """What a codec learns against, if anything."""
    return Discriminator(options.windows, options.filters) if options else None


def _conv(inputs: int, outputs: int, kernel: tuple[int, int], *, dilation: int = 1, stride: int = 1) -> nn.Module:
    padding = (dilation * (kernel[0] // 2), kernel[1] // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride=(1, stride), dilation=(dilation, 1), padding=padding)
    normed: nn.Module = weight_norm(conv)
    return normed


@dataclass(frozen=True, slots=True)
class AdversarialLosses:
    """Losses of the codec, for being scored as original (`codec`) and for matching features (`features`), and of the
    discriminator.

    The first two have no gradient in the discriminator, the last has none in the codec: their sum can be minimised in
    one step.
    """

    codec: Tensor
    features: Tensor
    discriminator: Tensor


def adversarial_losses(discriminator: Discriminator, said_BS: Tensor, heard_BS: Tensor) -> AdversarialLosses:
    """Compute the losses of the codec's output, given the original; means over rows."""
    heard, said = discriminator(heard_BS), discriminator(said_BS.detach())
    scales = list(zip(heard, said, strict=True))
    hinges = [F.relu(1 - true.float()).mean() + F.relu(1 + false.float()).mean() for (true, _), (false, _) in scales]
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    passed: Judged = functional_call(discriminator, frozen, (said_BS,))
    differences = [
        _difference(theirs, ours.detach())
        for (_, theirs_all), (_, ours_all) in zip(passed, heard, strict=True)
        for theirs, ours in zip(theirs_all, ours_all, strict=True)
    ]
    return AdversarialLosses(
        codec=torch.stack([F.relu(1 - score.float()).mean() for score, _ in passed]).mean(),
        features=torch.stack(differences).mean(),
        discriminator=torch.stack(hinges).mean(),
    )


def _difference(said: Tensor, heard: Tensor) -> Tensor:
    """Mean absolute difference, relative to each row's mean size."""
    size_B = heard.float().abs().flatten(1).mean(dim=1)
    difference_B = (said.float() - heard.float()).abs().flatten(1).mean(dim=1)
    return (difference_B / size_B.clamp(min=1e-6)).mean()
