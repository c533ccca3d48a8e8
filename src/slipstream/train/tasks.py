"""The tasks of the recipe: phones first, then the text stream and the codec together; or the text stream alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.data.rows import Targets
from slipstream.data.sampler import Batch, RowSampler, TokenBatch, TokenSampler
from slipstream.model.names import is_decoder
from slipstream.nn.lm import LM
from slipstream.nn.mimi import SplitResidualVQ
from slipstream.train.codebooks import CodebookStart, quantise
from slipstream.train.keep import OldModel, kept_loss
from slipstream.train.model import SpeechModel, pause_loss, phone_losses, text_hidden, text_loss
from slipstream.train.options import LossOptions, QuantiserOptions
from slipstream.train.sampled import SampledTask
from slipstream.train.transfer import Numbers, send


class PhoneTask(SampledTask[RowSampler]):
    """The codec's encoder learns to name phones: per frame where their times are known, by CTC everywhere."""

    def __init__(self, model: SpeechModel, sampler: RowSampler, loss: LossOptions) -> None:
        super().__init__(sampler)
        self.module, self.weights = model, loss
        self.row_seconds = sampler.data.seconds
        self.positions_per_second = sampler.phone_rate
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(("codec.encoder", "phone_head", "ctc_head")))

    def loss(self, batch: Batch, step: int, progress: float) -> tuple[Tensor, Numbers]:
        frame, ctc = _phones(self.module, self.module.positions(_mel(batch, self.module)), batch)
        total = self.weights.frame_phones * frame + self.weights.ctc * ctc
        return total, {"frame": frame.detach(), "ctc": ctc.detach()}


class JointTask(SampledTask[RowSampler]):
    """The LM learns the text stream; the codec keeps learning with it, and its quantiser is used from some step on."""

    def __init__(self, model: SpeechModel, sampler: RowSampler, loss: LossOptions, quantiser: QuantiserOptions) -> None:
        super().__init__(sampler, model.codec.quantizer)
        self.module, self.weights, self.quantiser = model, loss, quantiser
        self.row_seconds = sampler.data.seconds
        self.positions_per_second = sampler.phone_rate
        for name, parameter in model.named_parameters():
            unused = name.startswith("lm.audio_emb") or is_decoder(name.removeprefix("codec."))
            parameter.requires_grad_(not unused)
        self._start = CodebookStart(model.codec.quantizer, quantiser.start)

    def loss(self, batch: Batch, step: int, progress: float) -> tuple[Tensor, Numbers]:
        model, weights = self.module, self.weights
        self._start(step, self._latent)
        x_BPD = model.positions(_mel(batch, model))
        frame, ctc = _phones(model, x_BPD, batch)
        draw_B = send(batch.targets.draw_B, x_BPD.device)
        heard, commitment = hear(model.codec.quantizer, model.latent(x_BPD), draw_B, self.quantiser, step, progress)
        text, numbers = text_losses(
            model.lm, model.audio_input(*heard), batch.targets, weights, self.sampler.frame_rate
        )
        fall = max(weights.phones_to, 1 - 2 * progress * (1 - weights.phones_to))
        phones = fall * (weights.frame_phones * frame + weights.ctc * ctc)
        numbers |= {"frame": frame.detach(), "ctc": ctc.detach(), "commitment": commitment.detach()}
        return text + phones + weights.commitment * commitment, numbers

    def _latent(self, first_row: int, rows: int) -> Tensor:
        return self.module.latent(self.module.positions(_mel(self.batch(first_row, rows), self.module)))


def hear(
    quantizer: SplitResidualVQ,
    latent_BTD: Tensor,
    draw_B: Tensor,
    options: QuantiserOptions,
    step: int,
    progress: float,
) -> tuple[list[Tensor], Tensor]:
    """The LM's input from a latent: the semantic and the acoustic half, quantised in a share of the rows."""
    if step < options.start:
        halves = (quantizer.semantic, quantizer.acoustic)
        plain = [F.linear(latent_BTD.float(), half.input_proj.weight.float()) for half in halves]
        return plain, latent_BTD.new_zeros((), dtype=torch.float32)
    inputs, outputs, commitment = quantise(quantizer, latent_BTD, update=torch.is_grad_enabled())
    rise = max(0.0, progress - options.all_from) / 0.2
    share = options.share + (1 - options.share) * min(1.0, rise)
    rows_B11 = (draw_B < share)[:, None, None]
    return [torch.where(rows_B11, q, x) for x, q in zip(inputs, outputs, strict=True)], commitment


class TextTask(SampledTask[TokenSampler]):
    """The LM alone learns the text stream from a frozen codec's tokens: from scratch, from a checkpoint, or by LoRA.

    `codebook_dropout`: share of rows with their first codebooks only, of a number drawn for each. `old`: the
    model before the run, for `loss.base`.
    """

    def __init__(
        self,
        lm: LM,
        sampler: TokenSampler,
        loss: LossOptions,
        codebook_dropout: float,
        old: OldModel | None = None,
    ) -> None:
        super().__init__(sampler)
        self.module, self.weights, self.dropout = lm, loss, codebook_dropout
        self.old = old
        self.row_seconds = sampler.data.seconds
        self.positions_per_second = sampler.frame_rate

    def loss(self, batch: TokenBatch, step: int, progress: float) -> tuple[Tensor, Numbers]:
        lm, K = self.module, self.module.config.num_codebooks
        codes = send(batch.codes_BKT[:, :K], lm.audio_emb.weight.device)
        if self.dropout:
            draw_B = send(batch.targets.draw_B, codes.device)
            # A draw below the share is uniform in [0, share): it determines how many codebooks such a row keeps.
            kept_B = torch.where(draw_B < self.dropout, 1 + (draw_B / self.dropout * K).long(), K)
            codes = codes.masked_fill(torch.arange(K, device=codes.device)[:, None] >= kept_B[:, None, None], -1)
        first = torch.full_like(codes[..., :1], lm.config.audio_initial_id)
        audio = lm.audio_emb(torch.cat([first, codes[..., :-1]], dim=-1))
        return text_losses(lm, audio, batch.targets, self.weights, self.sampler.frame_rate, self.old)


def text_losses(
    lm: LM,
    audio_BTD: Tensor,
    targets: Targets,
    weights: LossOptions,
    frame_rate: float,
    old: OldModel | None = None,
    old_audio_BTD: Tensor | None = None,
    taught: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Numbers]:
    """The losses of the text stream and the pause heads, given the embedded audio of each position.

    `old_audio_BTD`: that of `old`, if it has other audio embeddings. `taught`: what a teacher adds to the loss of the
    text, from its scores `[B, T, V]`.
    """
    text, mask, pause = (
        send(array, audio_BTD.device) for array in (targets.text_BT, targets.mask_BT, targets.pause_BTH)
    )
    hidden_BTD = text_hidden(lm, audio_BTD, targets, frame_rate)
    logits_BTV = lm.text_logits(hidden_BTD)
    written = text_loss(logits_BTV, text, mask, weights.pad)
    numbers = {"text": written.detach()}
    total = weights.text * written
    if taught is not None:
        numbers["taught"] = (added := taught(logits_BTV)).detach()
        total = total + weights.text * added
    if old is not None:
        old.follow(audio_BTD)
        heard = audio_BTD if old_audio_BTD is None else old_audio_BTD
        base_BTV = old.logits(lambda lm: text_hidden(lm, heard, targets, frame_rate))
        kept = kept_loss(logits_BTV, base_BTV, send(targets.kept_BT, logits_BTV.device))
        total = total + weights.base * kept
        numbers["base"] = kept.detach()
    if lm.pause_heads is not None and weights.pause:
        pauses = pause_loss(lm.pause_logits(hidden_BTD), pause)
        total = total + weights.pause * pauses
        numbers["pause"] = pauses.detach()
    return total, numbers


def _mel(batch: Batch, model: SpeechModel) -> Tensor:
    weight = model.phone_head.weight
    return send(batch.mel_BFM, weight.device).transpose(1, 2).contiguous().to(weight.dtype)


def _phones(model: SpeechModel, x_BPD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    labels, sequence = (send(array, x_BPD.device) for array in (batch.phones_BP, batch.sequence))
    return phone_losses(model, x_BPD, labels, sequence, batch.lengths_B)
