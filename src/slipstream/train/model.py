"""What is trained: the codec and the LM of inference, with the heads and ties that training alone needs.

Shapes: B rows, F log-mel frames, P codec positions, T frames, M bands, D width, K codebooks.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.arrays import IntArray
from slipstream.data.phones import LABEL_DELAY, UNKNOWN, positions
from slipstream.data.rows import Targets
from slipstream.model.config import PAD_ID, STTConfig
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Codebook, Mimi
from slipstream.train.transfer import send


class SpeechModel(nn.Module):
    """A codec, an LM whose audio embeddings are tied to the codebooks, and phone heads on the codec's 25 Hz output.

    Tied: the embedding of entry c of a codebook is W c, one W for the semantic and one for the acoustic quantiser, so
    that similar codes have similar embeddings and a gradient reaches the codec. `fold` writes the products as tables.
    """

    def __init__(self, config: STTConfig, phones: int) -> None:
        super().__init__()
        self.config = config
        self.codec = Mimi(config.codec)
        self.lm = LM(config.lm)
        dim, width = config.codec.dim, config.lm.transformer.dim
        self.phone_head = nn.Linear(dim, phones)
        self.ctc_head = nn.Linear(dim, phones + 1)
        self.semantic_in = nn.Linear(config.codec.codebook_dim, width, bias=False)
        self.acoustic_in = nn.Linear(config.codec.codebook_dim, width, bias=False)
        self.initial_audio = nn.Parameter(torch.zeros(width))
        # Reads the text token that is being spoken off the quantised latent; for an LM on a Whisper encoder.
        self.token_head = (
            nn.Linear(2 * config.codec.codebook_dim, config.lm.text_vocab) if config.codec.whisper else None
        )
        with torch.no_grad():
            self.lm.text_emb.weight.mul_(0.3)
            for name, parameter in self.codec.named_parameters():
                if name.endswith(("scale1", "scale2")):
                    parameter.fill_(0.3)
        self.lm.audio_emb.requires_grad_(False)

    def positions(self, mel_BMF: Tensor) -> Tensor:
        """Log-mel frames to the codec's output at 25 Hz, `[B, P, D]`."""
        return positions(self.codec, mel_BMF)

    def latent(self, x_BPD: Tensor) -> Tensor:
        """The codec's output at its own rate to the latent `[B, T, D]` at 12.5 Hz, delayed as in a stream."""
        x_BDP = x_BPD.transpose(1, 2)
        if self.config.codec.whisper:
            x_BDP = F.pad(x_BDP, (self.config.codec.whisper.delay, 0))[..., : x_BDP.shape[-1]]
        latent, _ = self.codec.downsample(x_BDP)
        return cast(Tensor, latent).transpose(1, 2)

    def audio_input(self, semantic: Tensor, acoustic: Tensor) -> Tensor:
        """The audio input of the LM at positions 0 to T - 1 of T frames: the initial vector, then frames 0 to T - 2."""
        dtype = self.semantic_in.weight.dtype
        heard = self.semantic_in(semantic.to(dtype)) + self.acoustic_in(acoustic.to(dtype))
        first = self.initial_audio.to(dtype).expand(len(heard), 1, -1)
        return torch.cat([first, heard[:, :-1]], dim=1)

    @torch.no_grad()
    def fold(self) -> None:
        """Write the tied audio embeddings into the LM's ordinary tables."""
        table = self.lm.audio_emb.weight
        table.zero_()
        books = [*self.codec.quantizer.semantic.codebooks, *self.codec.quantizer.acoustic.codebooks]
        for k in range(self.config.lm.num_codebooks):
            W = (self.semantic_in if k < self.config.codec.num_semantic else self.acoustic_in).weight
            table[k, :-1] = cast(Codebook, books[k]).vectors @ W.float().T
        table[0, -1] = self.initial_audio.float()


def text_input(seen_BT: Tensor, initial_id: int) -> Tensor:
    """The text tokens that the LM reads at positions 0 to T - 1: the initial one, then those of the frames before."""
    return torch.cat([torch.full_like(seen_BT[:, :1], initial_id), seen_BT[:, :-1]], dim=1)


def text_hidden(lm: LM, audio_BTD: Tensor, targets: Targets, frame_rate: float) -> Tensor:
    """The LM's normalised output `[B, T, D]` for the embedded audio of each position and the text that it reads."""
    device = audio_BTD.device
    seen, delay = send(targets.seen_BT, device), send(targets.delay_B, device)
    text_BT = text_input(seen, lm.config.text_initial_id)
    condition = lm.condition({"delay": delay.float() / frame_rate}) if lm.conditioners else None
    hidden, _ = lm.embedded(text_BT, audio_BTD, condition_BD=condition, first_B=_first_positions(lm, len(text_BT)))
    return hidden


def _first_positions(lm: LM, rows: int) -> Tensor | None:
    """For Whisper's decoder in training, the number of each row's first token: 0, or in half of the rows any.

    Few rows are long enough to come to the later positions.
    """
    if lm.config.whisper is None or not torch.is_grad_enabled():
        return None
    device = next(lm.parameters()).device
    drawn = torch.randint(lm.config.whisper.num_positions, (rows,), device=device)
    return drawn * (torch.rand(rows, device=device) < 0.5)


@torch.no_grad()
def start_audio_embeddings(lm: LM, codec: Mimi) -> None:
    """Set a new LM's audio embeddings to random projections of the codec's codebook vectors.

    Entries that sound alike start alike, so that an LM on a frozen codec learns much faster than from random tables.
    The text embeddings become small in comparison, so that it reads the audio first.
    """
    table, at = lm.audio_emb.weight, 0
    table.zero_()
    lm.text_emb.weight.mul_(0.3)
    for branch in (codec.quantizer.semantic, codec.quantizer.acoustic):
        books = [cast(Codebook, book).vectors for book in branch.codebooks]
        W = torch.randn(books[0].shape[1], table.shape[2])
        spread = torch.stack([(book @ W).square().mean() for book in books]).sum().sqrt()
        for book in books[: len(table) - at]:
            table[at, :-1] = book @ W / spread
            at += 1


# Every loss is a sum over what has a label, divided by what could have one: a mean over rows, which stays the same
# however rows are shared between processes.


def phone_losses(
    model: SpeechModel, x_BPD: Tensor, labels_BP: Tensor, sequence: Tensor, lengths_B: IntArray
) -> tuple[Tensor, Tensor]:
    """Framewise cross-entropy and CTC of the codec's output at 25 Hz, each a position."""
    delayed = F.pad(labels_BP[:, :-LABEL_DELAY], (LABEL_DELAY, 0))
    scores = model.phone_head(x_BPD).float().flatten(0, 1)
    frame = F.cross_entropy(scores, delayed.flatten(), ignore_index=UNKNOWN, reduction="sum")
    log_probs = model.ctc_head(x_BPD).float().log_softmax(-1).transpose(0, 1)
    # PyTorch reads the lengths on the host.
    positions = torch.full((x_BPD.shape[0],), x_BPD.shape[1], device="cpu")
    ctc = F.ctc_loss(log_probs, sequence, positions, torch.from_numpy(lengths_B), zero_infinity=True, reduction="sum")
    return frame / labels_BP.numel(), ctc / labels_BP.numel()


def text_loss(logits_BTV: Tensor, text_BT: Tensor, mask_BT: Tensor, pad_weight: float) -> Tensor:
    """Cross-entropy of the text stream where `mask_BT` is set, PAD weighing `pad_weight`, a frame."""
    loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), text_BT.flatten(), reduction="none").view_as(text_BT)
    weight = mask_BT.float() * torch.where(text_BT == PAD_ID, pad_weight, 1.0)
    return (loss * weight).sum() / text_BT.numel()


def pause_loss(logits_BTHC: Tensor, labels_BTH: Tensor) -> Tensor:
    """Cross-entropy of the pause heads, a frame and head; fewer heads have the shorter horizons."""
    labels_BTH = labels_BTH[..., : logits_BTHC.shape[2]]
    scores, labels = logits_BTHC.float().flatten(0, 2), labels_BTH.flatten()
    return F.cross_entropy(scores, labels, ignore_index=UNKNOWN, reduction="sum") / max(1, labels.numel())
