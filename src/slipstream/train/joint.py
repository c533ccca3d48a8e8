"""The LM on a streaming Whisper encoder: the text stream, the quantiser between them, and phones for the aligner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from slipstream.arrays import BoolArray, IntArray
from slipstream.data.phones import UNKNOWN
from slipstream.data.waves import WaveBatch, WaveSampler
from slipstream.errors import ConfigError
from slipstream.model.config import PAD_ID
from slipstream.model.names import is_decoder
from slipstream.model.numerics import WHISPER_POSITIONS
from slipstream.nn.whisper import WhisperEncoder
from slipstream.train.codebooks import CodebookStart, quantise, start_projections
from slipstream.train.distil import Teacher, whisper_mel
from slipstream.train.keep import OldModel
from slipstream.train.model import SpeechModel
from slipstream.train.options import LossOptions, QuantiserOptions
from slipstream.train.sampled import SampledTask
from slipstream.train.tasks import hear, text_losses
from slipstream.train.text_teacher import TextTeacher
from slipstream.train.transfer import Numbers, send
from slipstream.train.whisper_start import start_audio_input

_ROWS = 16
"""Rows on whose latents the quantiser's projections start."""
_BETWEEN_WORDS = 0.3


class WhisperJointTask(SampledTask[WaveSampler]):
    """The LM and the quantiser learn the text stream from rows of waveforms; the encoder learns too, or stays.

    The phone head reads the encoder's features, and no gradient goes back from it. Shapes: B rows, A of them with
    audio, P positions at 50 Hz, T frames.

    Args:
        train_encoder: whether the encoder learns.
        teacher: what the encoder also learns from, by `loss.distil`, so that it keeps what it knows.
        old: the model before the run, for `loss.base`.
        text_teacher: the text decoder of `teacher`, and its share of the loss of the text's tokens.
        lookaheads: positions that each layer of the encoder sees ahead, one drawn for each step. Empty: its own.
    """

    def __init__(
        self,
        model: SpeechModel,
        sampler: WaveSampler,
        loss: LossOptions,
        quantiser: QuantiserOptions,
        train_encoder: bool,
        teacher: Teacher | None = None,
        old: OldModel | None = None,
        text_teacher: tuple[TextTeacher, float] | None = None,
        lookaheads: Sequence[int] = (),
    ) -> None:
        super().__init__(sampler, model.codec.quantizer)
        self.lookaheads = lookaheads
        self.text_teacher = text_teacher
        self.teacher, self.old, self.train_encoder = teacher, old, train_encoder
        self.module, self.weights, self.quantiser = model, loss, quantiser
        self.row_seconds = sampler.data.seconds
        self.positions_per_second = sampler.phone_rate
        for name, parameter in model.named_parameters():
            unused = name.startswith(("lm.audio_emb", "ctc_head")) or is_decoder(name.removeprefix("codec."))
            frozen = name.startswith("codec.encoder") and not train_encoder
            parameter.requires_grad_(not (unused or frozen))
        self.encoder_learns = train_encoder
        self._start = CodebookStart(model.codec.quantizer, quantiser.start)

    @torch.no_grad()
    def prepare(self) -> None:
        """Start the quantiser's projections and what reads them, on the run's first rows."""
        if not self.quantiser.start:
            return
        model = self.module
        start_projections(model.codec.quantizer, self._latent(0, _ROWS).flatten(0, 1))
        if model.config.lm.whisper and model.config.lm.transformer.dim == model.config.codec.dim:
            start_audio_input(model)
        if dist.is_initialized():  # the encoder's positions are drawn
            started = (model.codec.quantizer.semantic.input_proj, model.codec.quantizer.acoustic.input_proj)
            for layer in (*started, model.semantic_in, model.acoustic_in):
                # What is to be sharded is not on the device yet, where alone NCCL sends.
                shared = layer.weight.to("cuda" if dist.get_backend() == "nccl" else "cpu")
                dist.broadcast(shared, 0)
                layer.weight.copy_(shared)

    def loss(self, batch: WaveBatch, step: int, progress: float) -> tuple[Tensor, Numbers]:
        model, weights = self.module, self.weights
        self._start(step, self._latent)
        audible_B = ~batch.textual_B
        if not audible_B.any():
            silence = self._silence(batch)
            return text_losses(model.lm, silence, batch.targets, weights, self.sampler.frame_rate, self.old)
        mel, start_A = self._mel(batch, audible_B)
        with torch.set_grad_enabled(self.encoder_learns and torch.is_grad_enabled()):
            x_APD = _features(model, mel, start_A, self._lookahead())
        draw_A = send(batch.targets.draw_B[audible_B], x_APD.device)
        heard, commitment = hear(model.codec.quantizer, model.latent(x_APD), draw_A, self.quantiser, step, progress)
        audio_BTD = self._with_silence(model.audio_input(*heard), batch, audible_B)
        old_BTD = None
        if self.old is not None:
            self.old.follow(mel)
            old_BTD = self._with_silence(self._old_audio(self.old, mel, start_A, x_APD), batch, audible_B)
        follows = bool(weights.distil) and self.encoder_learns
        given_APD = None
        if self.teacher is not None and (follows or self.text_teacher is not None):
            given_APD = self.teacher.features(batch.clean_BS[audible_B])
        taught = self._taught(batch, audible_B, given_APD)
        rate = self.sampler.frame_rate
        total, numbers = text_losses(model.lm, audio_BTD, batch.targets, weights, rate, self.old, old_BTD, taught)
        numbers["commitment"] = commitment.detach()
        total = total + weights.commitment * commitment
        if weights.spoken:
            spoken = self._spoken(torch.cat(heard, dim=-1), batch.spoken_BT[audible_B])
            total = total + weights.spoken * spoken
            numbers["spoken"] = spoken.detach()
        if self.teacher is not None and given_APD is not None and follows:
            distance, cosine = self.teacher.loss(x_APD, given_APD)
            total = total + weights.distil * distance
            numbers["cosine"] = cosine
        phones_AP = batch.phones_BP[audible_B]
        if weights.frame_phones and (phones_AP != UNKNOWN).any():
            labels = send(phones_AP, x_APD.device).flatten()
            scores = model.phone_head(x_APD.detach()).float().flatten(0, 1)
            frame = F.cross_entropy(scores, labels, ignore_index=UNKNOWN)
            total = total + weights.frame_phones * frame
            numbers["frame"] = frame.detach()
        return total, numbers

    def _taught(
        self, batch: WaveBatch, audible_B: BoolArray, given_APD: Tensor | None
    ) -> Callable[[Tensor], Tensor] | None:
        """What the teacher's text decoder adds to the loss of the text, a frame, from the LM's scores."""
        if self.text_teacher is None or given_APD is None:
            return None
        (teacher, share), targets, features_APD = self.text_teacher, batch.targets, given_APD
        text_AT, mask_AT = targets.text_BT[audible_B], targets.mask_BT[audible_B]

        def added(logits_BTV: Tensor) -> Tensor:
            heard = logits_BTV[send(audible_B.nonzero()[0], logits_BTV.device)]
            return share * teacher.loss(heard, text_AT, mask_AT, features_APD) / targets.text_BT.size

        return added

    def _silence(self, batch: WaveBatch) -> Tensor:
        """What the LM reads of rows of text alone."""
        weight = self.module.semantic_in.weight
        return weight.new_zeros(*batch.targets.text_BT.shape, weight.shape[0])

    def _spoken(self, heard_BTD: Tensor, spoken: IntArray) -> Tensor:
        """Cross-entropy of the token that is being spoken, as late as the encoder; frames between words weigh less."""
        head, whisper = self.module.token_head, self.module.config.codec.whisper
        assert head is not None
        assert whisper is not None
        late = whisper.delay // self.module.config.codec.stride
        spoken_BT = send(spoken, heard_BTD.device)
        labels = F.pad(spoken_BT, (late, 0), value=PAD_ID)[:, : spoken_BT.shape[1]].flatten()
        scores = head(heard_BTD.to(head.weight.dtype)).float().flatten(0, 1)
        weight = torch.where(labels == PAD_ID, _BETWEEN_WORDS, 1.0)
        losses = F.cross_entropy(scores, labels, reduction="none") * weight
        return losses.sum() / weight.sum().clamp(min=1)

    @torch.no_grad()
    def _old_audio(self, old: OldModel, mel: Tensor, start_A: Tensor, x_APD: Tensor) -> Tensor:
        """The audio input of the model before the run; a frozen encoder's features are those of both."""
        model = cast(SpeechModel, old.module)
        x_APD = _features(model, mel, start_A) if self.train_encoder else x_APD
        _, heard, _ = quantise(model.codec.quantizer, model.latent(x_APD), update=False)
        return model.audio_input(*heard)

    def _lookahead(self) -> int | None:
        """A lookahead for a step. Features stay at their place, so the text is as late after them with each of them."""
        return self.lookaheads[int(torch.randint(len(self.lookaheads), ()))] if self.lookaheads else None

    def _with_silence(self, audio_ATD: Tensor, batch: WaveBatch, audible_B: BoolArray) -> Tensor:
        """The audio input of all rows, from that of the rows that have audio."""
        if audible_B.all():
            return audio_ATD
        rows_A = send(audible_B.nonzero()[0], audio_ATD.device)
        return self._silence(batch).index_copy(0, rows_A, audio_ATD)

    def _mel(self, batch: WaveBatch, audible_B: BoolArray) -> tuple[Tensor, Tensor]:
        """Log-mel frames of the rows that have audio, and the encoder's position at which each begins."""
        mel = whisper_mel(self.module.codec, batch.heard_BS[audible_B], self.module.phone_head.weight)
        effects = self.sampler.data.augment_samples
        if effects is not None and torch.is_grad_enabled():
            mel = masked(mel, effects.frequency_masks, effects.time_masks)
        return mel, torch.randint(WHISPER_POSITIONS, (len(mel),), device=mel.device)

    def _latent(self, first_row: int, rows: int) -> Tensor:
        batch = self.batch(first_row, rows)
        return self.module.latent(_features(self.module, *self._mel(batch, np.ones(rows, np.bool_))))


def masked(mel_BMF: Tensor, bands: int, stretches: int) -> Tensor:
    """Replace some bands (at most a seventh of all) and some stretches (at most 0.3 s) of each row by its mean.

    `bands`, `stretches`: the largest number of each.
    """
    mean_B11 = mel_BMF.mean(dim=(1, 2), keepdim=True)
    for axis, most, widest in ((1, bands, mel_BMF.shape[1] // 7), (2, stretches, 30)):
        shape, device = (len(mel_BMF), most, 1), mel_BMF.device
        width = torch.randint(widest + 1, shape, device=device) * (torch.rand(shape, device=device) < 0.6)
        first = (torch.rand(shape, device=device) * (mel_BMF.shape[axis] - width)).long()
        at = torch.arange(mel_BMF.shape[axis], device=device)
        hidden = ((at >= first) & (at < first + width)).any(dim=1)
        mel_BMF = torch.where(hidden.unsqueeze(3 - axis), mean_B11, mel_BMF)
    return mel_BMF


@torch.no_grad()
def frame_features(model: SpeechModel, sampler: WaveSampler) -> Tensor:
    """The encoder's features of each frame in the run's first rows, `[N, stride * D]`, cut as by `SpeechModel.latent`.

    Rows of text alone, and the frames that the encoder's delay leaves empty, are not in it. Raises `ConfigError` if
    nothing else is there.
    """
    stride, whisper = model.config.codec.stride, model.config.codec.whisper
    assert whisper is not None
    found = []
    for first in range(0, CodebookStart.ROWS, CodebookStart.AT_ONCE):
        batch = sampler.batch(first, CodebookStart.AT_ONCE)
        if batch.textual_B.all():
            continue
        mel = whisper_mel(model.codec, batch.heard_BS[~batch.textual_B], model.phone_head.weight)
        x_APD = _features(model, mel, torch.randint(WHISPER_POSITIONS, (len(mel),), device=mel.device))
        x_APD = x_APD[:, -whisper.delay % stride :]
        found.append(x_APD[:, : x_APD.shape[1] // stride * stride].unflatten(1, (-1, stride)).flatten(2).flatten(0, 1))
    if not found:
        raise ConfigError(
            f"the first {CodebookStart.ROWS} rows of the run are text alone, and several vectors per frame start from "
            "features of audio: use a lower data.text_share"
        )
    return torch.cat(found)


def _features(model: SpeechModel, mel: Tensor, start_A: Tensor, lookahead: int | None = None) -> Tensor:
    """The encoder's features, not delayed, `[A, P, D]`."""
    return cast(WhisperEncoder, model.codec.encoder).hidden(mel, start_B=start_A, lookahead=lookahead)[-1]
