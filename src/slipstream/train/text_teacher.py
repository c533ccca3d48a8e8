"""Distillation of Whisper's text decoder into the text stream of an LM.

For each token of a row's text, the teacher reads the whole row's clean audio and the text before the token. The LM
learns its probabilities next to the label, so that it also learns which other words the audio could be.
Shapes: B rows, T frames, P positions at 50 Hz, N tokens of a row, L languages, V pieces, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.arrays import BoolArray, IntArray
from slipstream.checkpoints.whisper import WhisperDecoderWeights, read_whisper_decoder
from slipstream.errors import ConfigError
from slipstream.model.config import PAD_ID, WORD_ID, TransformerConfig
from slipstream.model.numerics import LAYER_NORM_EPS
from slipstream.model.text import Tokenizer
from slipstream.nn.whisper import WhisperAttention, WhisperFeedForward
from slipstream.train.transfer import send
from slipstream.train.whisper_start import piece_tokens, prompts, vocabulary_beside


class _Layer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS) for _ in range(3))
        self.attn, self.cross = WhisperAttention(config), WhisperAttention(config)
        self.ffn = WhisperFeedForward(config)

    def forward(self, x_BND: Tensor, audio_keys: tuple[Tensor, Tensor]) -> Tensor:
        x = self.norm1(x_BND)
        keys = self.attn.keys(x)
        x_BND = x_BND + self.attn.output(F.scaled_dot_product_attention(self.attn.queries(x), *keys, is_causal=True))
        queries = self.cross.queries(self.norm2(x_BND))
        x_BND = x_BND + self.cross.output(F.scaled_dot_product_attention(queries, *audio_keys))
        ffn: Tensor = self.ffn(self.norm3(x_BND))
        return x_BND + ffn


class _Decoder(nn.Module):
    """Whisper's decoder for whole sequences: `[B, N]` tokens and the keys of `[B, P, D]` features to `[B, N, D]`."""

    def __init__(self, weights: WhisperDecoderWeights) -> None:
        super().__init__()
        tensors = {name: torch.from_numpy(array) for name, array in weights.tensors.items()}
        self.embedding = nn.Parameter(torch.zeros(tensors["embedding"].shape))
        self.positions = nn.Parameter(torch.zeros(tensors["positions"].shape))
        self.layers = nn.ModuleList(_Layer(weights.transformer) for _ in range(weights.num_layers))
        self.out_norm = nn.LayerNorm(weights.transformer.dim, eps=LAYER_NORM_EPS)
        self.load_state_dict(tensors)

    def audio_keys(self, features_BPD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The keys and values of the audio in each layer."""
        return [cast(_Layer, layer).cross.keys(features_BPD) for layer in self.layers]

    def forward(self, tokens_BN: Tensor, audio_keys: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        x = self.embedding[tokens_BN] + self.positions[: tokens_BN.shape[1]]
        for layer, keys in zip(self.layers, audio_keys, strict=True):
            x = layer(x, keys)
        normed: Tensor = self.out_norm(x)
        return normed


class TextTeacher:
    """Whisper's text decoder, whose probabilities the LM's tokens follow. It detects each row's language itself.

    Args:
        weights: The decoder, of the checkpoint whose encoder computes the features.
        vocabulary: Id by token, as Whisper's tokenizer writes tokens.
        tokenizer: The LM's; its pieces are Whisper's.
        languages: Codes of those that the rows are in.
        dtype: What it computes in.

    Raises:
        ConfigError: A piece is not a token of Whisper's, or Whisper has none of the languages.
    """

    def __init__(
        self,
        weights: WhisperDecoderWeights,
        vocabulary: Mapping[str, int],
        tokenizer: Tokenizer,
        languages: Sequence[str],
        dtype: torch.dtype,
    ) -> None:
        self._decoder = _Decoder(weights).requires_grad_(False)
        if dtype != torch.float32:
            self._decoder.to(dtype)
        self._prompts_L4 = prompts(vocabulary, languages, "distil.text")
        names = piece_tokens(tokenizer)
        known = [i for i, name in enumerate(names) if name is not None and i not in (PAD_ID, WORD_ID)]
        missing = [str(names[i]) for i in known if names[i] not in vocabulary]
        if missing:
            raise ConfigError(
                f"distil.text: {len(missing)} pieces of data.tokenizer are not Whisper's, such as {missing[0]!r}: "
                "make the tokenizer by `slipstream train tokenizer --whisper`"
            )
        self._pieces = np.array(known)
        self._number_V = np.full(len(names), -1)
        self._number_V[self._pieces] = np.arange(len(known))
        self._ids = np.array([vocabulary[str(names[i])] for i in known])

    def loss(self, logits_BTV: Tensor, text_BT: IntArray, mask_BT: BoolArray, features_BPD: Tensor) -> Tensor:
        """Cross-entropy of the LM's probabilities of pieces with the teacher's, less that with the labels.

        The sum over the tokens of `text_BT` where `mask_BT` is set. Which frames have a token is not taught: the
        probabilities are those of a token if there is one. Tokens beyond the teacher's last position do not count.

        Args:
            features_BPD: The teacher's encoder's features of the rows.
        """
        device = logits_BTV.device
        if self._decoder.embedding.device != device:
            self._decoder.to(device)
        number_BT = np.where(mask_BT, self._number_V[text_BT], -1)
        most = len(self._decoder.positions) - self._prompts_L4.shape[1] + 1
        order_BT = (number_BT >= 0).cumsum(axis=1) - 1
        rows, frames = np.nonzero((number_BT >= 0) & (order_BT < most))
        if not len(rows):
            return logits_BTV.new_zeros(())
        places, numbers = order_BT[rows, frames], number_BT[rows, frames]
        tokens_BN = np.zeros((len(text_BT), places.max() + 1), np.int64)
        tokens_BN[rows, places] = self._ids[numbers]
        with torch.no_grad():
            pieces = self._probabilities(
                send(tokens_BN, device), features_BPD, send(rows, device), send(places, device)
            )
        at = send(rows, device), send(frames, device)
        ours = logits_BTV[at][:, send(self._pieces, device)].float().log_softmax(dim=-1)
        return F.nll_loss(ours, send(numbers, device), reduction="sum").neg() - (pieces * ours).sum()

    def _probabilities(self, tokens_BN: Tensor, features_BPD: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """The teacher's probabilities of pieces at some places of its text."""
        prompts_L4 = send(self._prompts_L4, tokens_BN.device)
        keys = self._decoder.audio_keys(features_BPD.to(self._decoder.embedding.dtype))
        start_B1 = prompts_L4[0, :1].expand(len(tokens_BN), 1)
        heard_BD = self._decoder(start_B1, keys)[:, 0]
        language_B = (heard_BD @ self._decoder.embedding[prompts_L4[:, 1]].T).argmax(dim=-1)
        read_BN = torch.cat([prompts_L4[language_B], tokens_BN[:, :-1]], dim=1)
        hidden_BND = self._decoder(read_BN, keys)[:, prompts_L4.shape[1] - 1 :]
        scores: Tensor = hidden_BND[rows, places] @ self._decoder.embedding[send(self._ids, tokens_BN.device)].T
        return scores.float().softmax(dim=-1)


def read_text_teacher(name: str, tokenizer: Tokenizer, languages: Sequence[str], dtype: torch.dtype) -> TextTeacher:
    """Read the text decoder of the checkpoint `name` (see `read_whisper`), with the `tokenizer.json` next to it."""
    return TextTeacher(read_whisper_decoder(name), vocabulary_beside(name), tokenizer, languages, dtype)
