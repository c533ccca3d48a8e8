"""Training a waveform codec: to reconstruct its input, with a first codebook that encodes phones.

Reconstruction in log-mel bands at several resolutions and in the waveform (as in SoundStream, arXiv:2107.03312, and
EnCodec, arXiv:2210.13438), quantiser dropout over the acoustic codebooks, and framewise phones read off the semantic
one, where Mimi (arXiv:2410.00037) distils a self-supervised teacher. A discriminator as an option (`adversary`).
Shapes: B rows, S samples, T frames, D latent width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.arrays import FloatArray, IntArray
from slipstream.data.augment import WaveAugment
from slipstream.data.packs import Clip, Pack
from slipstream.data.phones import UNKNOWN, PhoneInventory
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig, MelConfig
from slipstream.model.numerics import mel_bands
from slipstream.nn.mimi import Mimi, SplitResidualVQ
from slipstream.train.adversary import Discriminator, adversarial_losses
from slipstream.train.codebooks import CodebookStart, quantise
from slipstream.train.options import LossOptions, QuantiserOptions
from slipstream.train.sampled import SampledTask
from slipstream.train.transfer import Numbers, send

RESOLUTIONS = (512, 1024, 2048)
"""Window lengths, in samples, of the log-mel losses; each hops by a quarter."""


@dataclass(frozen=True, slots=True)
class Crops:
    """`samples_BS`; `phones_BT` the phone of each frame, or UNKNOWN; `draw_B` a uniform number for each row."""

    samples_BS: FloatArray
    phones_BT: IntArray
    draw_B: FloatArray


class CropSampler:
    """Crops of recordings, augmented if the options request it, with the phones of their frames where these are known.

    Without an inventory of phones none is known.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        phones: PhoneInventory | None,
        codec: CodecConfig,
        weights: dict[str, float],
        seconds: float,
        seed: int,
        augment: WaveAugment | None = None,
    ) -> None:
        if any(pack.kind.kind != "samples" for pack in packs):
            raise ConfigError("this run needs packs of samples: `slipstream data pack --samples`")
        self.phones, self.codec, self.seed, self.augment = phones, codec, seed, augment
        self.frames = max(1, round(seconds * codec.frame_rate))
        self.length = self.frames * codec.frame_samples
        self.seconds = self.frames / codec.frame_rate
        self._clips = [(pack, clip) for pack in packs for clip in pack.clips if clip.dataset in weights]
        if not self._clips:
            raise ConfigError(f"data.weights names {', '.join(weights)}, but the packs hold no clip of it")
        each = np.array([weights[clip.dataset] for _, clip in self._clips])
        counts = {d: sum(clip.dataset == d for _, clip in self._clips) for d in weights}
        each = each / np.array([counts[clip.dataset] for _, clip in self._clips])
        self._probabilities = each / each.sum()

    def held_out(self, packs: Sequence[Pack]) -> CropSampler:
        """The same kind of rows from other packs, in which each recording is as likely as another; not augmented."""
        counts = Counter(clip.dataset for pack in packs for clip in pack.clips)
        weights = {dataset: float(count) for dataset, count in counts.items()}
        return CropSampler(packs, self.phones, self.codec, weights, self.seconds, seed=0)

    def batch(self, first_row: int, rows: int) -> Crops:
        """Rows `first_row` to `first_row + rows`."""
        drawn = [self._row(np.random.default_rng((self.seed, n))) for n in range(first_row, first_row + rows)]
        samples, phones, draws = zip(*drawn, strict=True)
        return Crops(np.stack(samples), np.stack(phones), np.array(draws, np.float32))

    def _row(self, rng: np.random.Generator) -> tuple[FloatArray, IntArray, float]:
        pack, clip = self._clips[int(rng.choice(len(self._clips), p=self._probabilities))]
        start = int(rng.integers(0, max(1, clip.length - self.length)))
        samples = pack.rows(clip)[start : start + self.length, 0] / np.float32(32768)
        samples = np.pad(samples, (0, self.length - len(samples)))
        if self.augment is not None:
            samples = self.augment(samples, round(pack.kind.rate), rng).astype(np.float32)
        return samples, self._phones_from(clip, start / pack.kind.rate), float(rng.random())

    def _phones_from(self, clip: Clip, start: float) -> IntArray:
        labels = np.full(self.frames, UNKNOWN, np.int64)
        if clip.phones and self.phones is not None:
            starts = np.array([time for _, time in clip.phones])
            middles = start + (np.arange(self.frames) + 0.5) / self.codec.frame_rate
            places = np.searchsorted(starts, middles, side="right") - 1
            numbers = np.array([self.phones.number(name) for name, _ in clip.phones])
            labels = np.where(places >= 0, numbers[places], 0)
        return labels


class WaveCodec(nn.Module):
    """A codec, a head that reads phones off the semantic codebook's part of the latent, and a discriminator if any."""

    def __init__(self, config: CodecConfig, phones: int, discriminator: Discriminator | None = None) -> None:
        super().__init__()
        self.codec = Mimi(config)
        self.phone_head = nn.Linear(config.dim, phones)
        self.discriminator = discriminator

    def decode(self, latent_BTD: Tensor) -> Tensor:
        """The quantised latent to samples `[B, S]`, in one call."""
        samples_BS, _ = self.codec.synthesise(latent_BTD.transpose(1, 2))
        return samples_BS


class CropTask(SampledTask[CropSampler]):
    """What learns to write the samples of crops, from step `discriminator_start` on against a discriminator, if any."""

    def __init__(
        self,
        sampler: CropSampler,
        loss: LossOptions,
        quantiser: QuantiserOptions,
        discriminator_start: int,
        quantizer: SplitResidualVQ | None = None,
    ) -> None:
        super().__init__(sampler, quantizer)
        self.weights, self.quantiser = loss, quantiser
        self.discriminator_start = discriminator_start
        self.row_seconds = sampler.seconds


class ReconstructionTask(CropTask):
    """A codec learns to reconstruct its input from any number of its acoustic codebooks."""

    def __init__(
        self,
        module: WaveCodec,
        sampler: CropSampler,
        loss: LossOptions,
        quantiser: QuantiserOptions,
        discriminator_start: int = 0,
    ) -> None:
        super().__init__(sampler, loss, quantiser, discriminator_start, module.codec.quantizer)
        self.module = module
        self.positions_per_second = module.codec.config.sample_rate / module.codec.config.hop_samples
        self._start = CodebookStart(module.codec.quantizer, quantiser.start)

    def loss(self, batch: Crops, step: int, progress: float) -> tuple[Tensor, Numbers]:
        module, quantizer = self.module, self.module.codec.quantizer
        self._start(step, lambda first_row, rows: self._latent(self._heard(self.batch(first_row, rows))))
        weight = module.phone_head.weight
        heard_BS = self._heard(batch)
        latent = self._latent(heard_BS)
        halves = (quantizer.semantic, quantizer.acoustic)
        if step < self.quantiser.start:
            parts = [F.linear(latent.float(), half.input_proj.weight.float()) for half in halves]
            commitment = latent.new_zeros((), dtype=torch.float32)
        else:
            draw_B = send(batch.draw_B, weight.device)
            kept_B = kept_codebooks(draw_B, module.codec.config, self.quantiser.codebook_dropout)
            _, parts, commitment = quantise(quantizer, latent, update=torch.is_grad_enabled(), kept_B=kept_B)
        semantic, acoustic = (half.output_proj(part.to(weight.dtype)) for half, part in zip(halves, parts, strict=True))
        labels = send(batch.phones_BT, weight.device)
        phones = F.cross_entropy(
            module.phone_head(semantic).float().flatten(0, 1), labels.flatten(), ignore_index=UNKNOWN, reduction="sum"
        )
        said_BS = module.decode(semantic + acoustic).float()
        judge = module.discriminator if step >= self.discriminator_start else None
        rate = module.codec.config.sample_rate
        total, numbers = output_losses(said_BS, heard_BS.float(), rate, self.weights, judge)
        numbers |= {"phones": phones / labels.numel(), "commitment": commitment}
        total = total + self.weights.frame_phones * numbers["phones"] + self.weights.commitment * commitment
        return total, {name: value.detach() for name, value in numbers.items()}

    def _heard(self, batch: Crops) -> Tensor:
        weight = self.module.phone_head.weight
        return send(batch.samples_BS, weight.device).to(weight.dtype)

    def _latent(self, heard_BS: Tensor) -> Tensor:
        latent_BDT, _ = self.module.codec.latent(heard_BS)
        latent: Tensor = latent_BDT.transpose(1, 2)
        return latent


def kept_codebooks(draw_B: Tensor, config: CodecConfig, share: float) -> Tensor:
    """How many acoustic codebooks each row keeps: all, except in the `share` of rows that drop some."""
    count = config.num_codebooks - config.num_semantic
    fewer = (draw_B / max(share, 1e-9) * (count + 1)).long()
    return torch.where(draw_B < share, fewer, count)


def output_losses(
    said_BS: Tensor, heard_BS: Tensor, sample_rate: int, weights: LossOptions, discriminator: Discriminator | None
) -> tuple[Tensor, Numbers]:
    """The weighted loss of a decoder's output, given the original, and its parts; against a discriminator if any."""
    spectral = multi_resolution(said_BS, heard_BS, sample_rate)
    numbers = {"spectral": spectral, "waveform": F.l1_loss(said_BS, heard_BS)}
    total = weights.spectral * spectral + weights.waveform * numbers["waveform"]
    if discriminator is not None:
        judged = adversarial_losses(discriminator, said_BS, heard_BS)
        numbers |= {"adversarial": judged.codec, "features": judged.features, "discriminator": judged.discriminator}
        total = total + weights.adversarial * judged.codec + weights.features * judged.features
        total = total + judged.discriminator
    return total, numbers


def multi_resolution(said_BS: Tensor, heard_BS: Tensor, sample_rate: int) -> Tensor:
    """Mean absolute difference of log-mel spectra, over the windows of `RESOLUTIONS`."""
    losses = []
    for window in RESOLUTIONS:
        bands = _bands(window, sample_rate, said_BS.device)
        hann = torch.hann_window(window, device=said_BS.device)
        spectra = [
            (bands @ torch.stft(x, window, window // 4, window=hann, return_complex=True).abs().square() + 1e-4).log10()
            for x in (said_BS, heard_BS)
        ]
        losses.append(F.l1_loss(spectra[0], spectra[1]))
    return torch.stack(losses).mean()


@lru_cache(maxsize=8)
def _bands(window: int, sample_rate: int, device: torch.device) -> Tensor:
    count = round(64 * math.log2(window / 128) / 4)
    config = MelConfig(n_mels=count, window=window, hop=window // 4, f_min=0.0, f_max=sample_rate / 2)
    return send(mel_bands(config, sample_rate), device)
