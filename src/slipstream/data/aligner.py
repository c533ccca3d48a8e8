"""Find when each word of a recording is spoken, with a trained codec and its phone head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.data.alignment import align_words
from slipstream.data.espeak import phones_of
from slipstream.data.manifest import Recording
from slipstream.data.packs import log_mel
from slipstream.data.phones import LABEL_DELAY, PhoneInventory, positions
from slipstream.errors import SlipstreamError
from slipstream.nn.mel import LogMel
from slipstream.nn.mimi import Mimi


class Aligner:
    """Finds word times with a codec of log-mel frames and a head that names phones from its output.

    Args:
        codec: The codec.
        head: From the output of its Transformer to the phones.
        phones: The names of the phones.
        dtype: Type of the codec's matrix products: float32 or bfloat16.
    """

    least = -3.5
    """Fit below which a text is taken for another recording's."""

    def __init__(
        self, codec: Mimi, head: nn.Linear, phones: PhoneInventory, dtype: torch.dtype = torch.float32
    ) -> None:
        self.codec, self.head, self.phones, self.dtype = codec.eval(), head, phones, dtype

    @torch.inference_mode()
    def align(self, recording: Recording) -> tuple[Recording, float]:
        """Return the recording with the times of its words and phones, and how well they fit (`Alignment.fit`).

        Raises `SlipstreamError` when the text is too long for the audio, its language has no phones, or the audio
        cannot be read.
        """
        samples = load(recording.audio)
        pronounced = phones_of(recording.text, recording.lang)
        numbers = [[n for n in map(self.phones.number, word) if n] for word in pronounced]
        padded = np.pad(samples, (0, -len(samples) % self.codec.config.frame_samples))
        mel = log_mel(_front_end(self.codec), padded)
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            x_BPD = positions(self.codec, torch.from_numpy(mel.T.copy())[None])
        log_probs: FloatArray = self.head(x_BPD.float()).log_softmax(-1)[0].numpy()
        seconds = self.codec.config.hop_samples / self.codec.config.sample_rate
        lag = 0.0 if self.codec.config.whisper else LABEL_DELAY * seconds
        found = align_words(log_probs, numbers, recording.text.split(), seconds, lag)
        phones = tuple((self.phones.names[number], start) for number, start in found.phones)
        return replace(recording, words=found.words, phones=phones), found.fit


def _front_end(codec: Mimi) -> LogMel:
    if codec.mel is None:
        raise SlipstreamError("the aligner needs a log-mel codec with phone heads; this codec takes samples")
    return codec.mel
