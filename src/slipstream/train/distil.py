"""Distillation of Whisper's bidirectional encoder into the streaming encoder of a codec.

The student has limited context and gets rooms and noise; the teacher gets the whole row, clean. A third of the
variance of Whisper's features depends only on the position in the window of 30 s, which a stream cannot know:
the mean feature of each position is subtracted from the teacher's first.
Shapes: B rows, S samples, T positions at 50 Hz.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.arrays import FloatArray
from slipstream.checkpoints.tensors import Array
from slipstream.checkpoints.whisper import read_whisper
from slipstream.data.packs import mel_power
from slipstream.data.waves import WaveBatch, WaveSampler
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import STTConfig, WhisperConfig
from slipstream.model.numerics import WHISPER_POSITIONS
from slipstream.nn.mel import LogMel
from slipstream.nn.mimi import Mimi
from slipstream.nn.whisper import WhisperEncoder
from slipstream.train.codebooks import start_codebooks
from slipstream.train.options import LossOptions
from slipstream.train.sampled import SampledTask
from slipstream.train.speech import read_speech_weights
from slipstream.train.transfer import Numbers, send

MEAN_ROWS = 64
"""Rows over which the teacher's mean feature of each position is taken, and on whose latents codebooks are placed."""
_AT_ONCE = 8
_SMOOTHING = 51
_RANGE = 8.0
"""Powers of ten between the loudest band of a clip and Whisper's floor."""


class Distilled(nn.Module):
    """A codec with Whisper's encoder, and a head that reads text tokens off its quantisers' inputs (CTC)."""

    def __init__(self, config: STTConfig) -> None:
        super().__init__()
        self.config = config
        self.codec = Mimi(config.codec)
        self.ctc_head = nn.Linear(2 * config.codec.codebook_dim, config.lm.text_vocab + 1)

    def latent(self, x_BTD: Tensor) -> Tensor:
        """Features at 50 Hz to the latent at the frame rate, not delayed."""
        latent, _ = self.codec.downsample(x_BTD.transpose(1, 2))
        return cast(Tensor, latent).transpose(1, 2)

    def tokens(self, latent_BTD: Tensor) -> Tensor:
        """Scores of the blank and each text token, `[B, T, V + 1]`."""
        quantizer = self.codec.quantizer
        halves = [half.input_proj(latent_BTD) for half in (quantizer.semantic, quantizer.acoustic)]
        scores: Tensor = self.ctc_head(torch.cat(halves, dim=-1))
        return scores


def whisper_mel(codec: Mimi, samples_BS: FloatArray, like: Tensor) -> Tensor:
    """What a codec's Whisper encoder reads of samples, `[B, M, F]`, on the device and in the type of `like`."""
    front_end = cast(LogMel, codec.mel)
    return front_end.scale(_power(front_end, samples_BS)).transpose(1, 2).to(like)


def _power(front_end: LogMel, samples_BS: FloatArray) -> Tensor:
    """The power in each band, on the front end's device."""
    return mel_power(front_end, send(samples_BS, front_end.fourier.device))


class Teacher:
    """Whisper's bidirectional encoder, whose features a streaming encoder learns, less their mean at each position.

    Args:
        teacher: the tensors of a Whisper encoder, and its configuration.
        student: the configuration of the encoder that learns.
        front_end: that of the student's codec; it computes the teacher's bands too.
        rows: clean samples of the run's rows.
        dtype: what it computes in.
    """

    def __init__(
        self,
        teacher: tuple[WhisperConfig, dict[str, Array]],
        student: WhisperConfig | None,
        front_end: LogMel,
        rows: Callable[[int, int], FloatArray],
        dtype: torch.dtype,
    ) -> None:
        config, tensors = teacher
        if student is None or (student.dim, student.num_layers) != (config.dim, config.num_layers):
            raise ConfigError(
                f"distil.teacher has {config.num_layers} layers of width {config.dim}: model.codec.whisper must agree"
            )
        self._front_end, self._rows = front_end, rows
        self._encoder = WhisperEncoder(config)
        names = {name.removeprefix("encoder."): torch.from_numpy(array) for name, array in tensors.items()}
        self._encoder.load_state_dict(names)
        self._encoder.to(dtype).requires_grad_(False)
        self._mean: Tensor | None = None

    def loss(self, x_BTD: Tensor, features_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """How far a student's features are from the teacher's (`features`), and their cosine similarity."""
        student, target_BTD = x_BTD.float(), features_BTD - self._means()[: x_BTD.shape[1]]
        cosine = F.cosine_similarity(student, target_BTD, dim=-1).mean()
        return F.smooth_l1_loss(student, target_BTD, beta=0.5) + 1 - cosine, cosine.detach()

    @torch.no_grad()
    def features(self, clean_BS: FloatArray) -> Tensor:
        """The teacher's features of clean samples, `[B, T, D]`, with what their position adds."""
        self._encoder.to(self._front_end.fourier.device)
        power = _power(self._front_end, clean_BS).clamp(min=1e-10).log10()
        floor = power.amax(dim=(1, 2), keepdim=True) - _RANGE
        mel = (torch.maximum(power, floor) + 4) / 4
        return self._encoder.hidden(mel.transpose(1, 2).to(self._encoder.conv1.weight), bidirectional=True)[-1].float()

    def mean(self) -> Tensor:
        """The teacher's mean feature, `[D]`."""
        return self._means().mean(dim=0)

    def _means(self) -> Tensor:
        """The teacher's mean feature at each position of a row, smoothed over a second, `[T, D]`.

        Taken over the run's first rows, so that a run that was stopped has the same again.
        """
        if self._mean is None:
            firsts = range(0, MEAN_ROWS, _AT_ONCE)
            parts = [self.features(self._rows(n, _AT_ONCE)).mean(dim=0) for n in firsts]
            mean_1DT = torch.stack(parts).mean(dim=0).T[None]
            half = _SMOOTHING // 2
            self._mean = F.avg_pool1d(F.pad(mean_1DT, (half, half), mode="replicate"), _SMOOTHING, 1)[0].T
        return self._mean


def start_distilled(model: Distilled, init: str | None) -> None:
    """Take the weights of a Whisper checkpoint, or of another run's `last.pt`."""
    if init is None:
        raise ConfigError('model.init: give a Whisper checkpoint, "whisper:FOLDER_OR_NAME", or a run\'s last.pt')
    if init.startswith("whisper:"):
        given = {f"codec.{name}": torch.from_numpy(a) for name, a in read_whisper(init).tensors.items()}
    else:
        given = read_speech_weights(init)
    ours = model.state_dict()
    taken = {name: w for name, w in given.items() if name in ours and ours[name].shape == w.shape}
    if not taken:
        raise CheckpointError(f"{init}: none of its weights fits model.codec")
    model.load_state_dict(taken, strict=False)


class DistilTask(SampledTask[WaveSampler]):
    """The student's features become the teacher's, less their mean at each position; CTC where there is text.

    Args:
        model: the student.
        teacher: the tensors of a Whisper encoder, and its configuration.
        sampler: rows of samples at the codec's rate.
    """

    def __init__(
        self,
        model: Distilled,
        teacher: tuple[WhisperConfig, dict[str, Array]],
        sampler: WaveSampler,
        loss: LossOptions,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(sampler)
        self.module, self.weights = model, loss
        self.row_seconds = sampler.data.seconds
        self.positions_per_second = model.config.codec.sample_rate / model.config.codec.hop_samples
        self.teacher = Teacher(teacher, model.config.codec.whisper, cast(LogMel, model.codec.mel), sampler.clean, dtype)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("output_proj" not in name)

    def loss(self, batch: WaveBatch, step: int, progress: float) -> tuple[Tensor, Numbers]:
        model = self.module
        mel = self._frames(batch.heard_BS)
        start_B = torch.randint(WHISPER_POSITIONS, (len(mel),), device=mel.device)
        x_BTD = cast(WhisperEncoder, model.codec.encoder).hidden(mel, start_B=start_B)[-1]
        total, cosine = self.teacher.loss(x_BTD, self.teacher.features(batch.clean_BS))
        numbers = {"cosine": cosine}
        if self.weights.ctc and batch.labelled_B.any():
            ctc = self._ctc(x_BTD, batch)
            total = total + self.weights.ctc * ctc
            numbers["ctc"] = ctc.detach()
        return total, numbers

    @torch.no_grad()
    def place_codebooks(self) -> None:
        """Place the quantiser's codebooks by k-means on the latents of the run's first rows."""
        model, latents = self.module.float(), []
        for first in range(0, MEAN_ROWS, _AT_ONCE):
            mel = self._frames(self.batch(first, _AT_ONCE).heard_BS)
            x_BTD = cast(WhisperEncoder, model.codec.encoder).hidden(mel)[-1]
            latents.append(model.latent(x_BTD).flatten(0, 1))
        start_codebooks(model.codec.quantizer, torch.cat(latents))

    def _frames(self, samples_BS: FloatArray) -> Tensor:
        return whisper_mel(self.module.codec, samples_BS, self.module.ctc_head.weight)

    def _ctc(self, x_BTD: Tensor, batch: WaveBatch) -> Tensor:
        """CTC of the labelled rows' text, a frame."""
        labelled_B, device = batch.labelled_B, x_BTD.device
        sequence = send(batch.sequence[np.repeat(labelled_B, batch.lengths_B)], device)
        rows = send(labelled_B.nonzero()[0], device)
        log_probs = self.module.tokens(self.module.latent(x_BTD[rows])).float().log_softmax(-1).transpose(0, 1)
        # PyTorch reads the lengths on the host.
        frames = torch.full((log_probs.shape[1],), log_probs.shape[0], device="cpu")
        lengths = torch.from_numpy(batch.lengths_B[labelled_B])
        loss = F.ctc_loss(log_probs, sequence, frames, lengths, zero_infinity=True, reduction="sum")
        return loss / (len(labelled_B) * log_probs.shape[0])
