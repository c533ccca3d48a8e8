"""Phones: the inventory, and the positions of the encoder that name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor

from slipstream.data.packs import Clip
from slipstream.nn.mimi import Mimi
from slipstream.nn.whisper import WhisperEncoder

SILENCE = "_"
"""The phone of silence, and the first of every inventory."""
UNKNOWN = -100
"""A label that is not known: it has no loss."""


def fold(name: str) -> str:
    """The phone of an espeak-ng allophone (`aI3`, `n-`, `t[`): its name without marks. A language flag has none."""
    return "" if name.startswith("(") else name[:1] + name[1:].rstrip("0123456789#-[;")


class PhoneInventory:
    """Phone names by number; 0 is silence. A phone too rare in training maps to its longest known prefix."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._numbers = {name: i for i, name in enumerate(names)}

    @classmethod
    def of(cls, clips: Iterable[Clip], least: float = 2e-5) -> PhoneInventory:
        """The phones that make up at least the share `least` of all that `clips` hold, allophones as one phone."""
        counts: Counter[str] = Counter()
        for clip in clips:
            counts.update(fold(name) for name, _ in clip.phones)
            counts.update(map(fold, clip.phone_sequence))
        del counts[""]
        enough = least * counts.total()
        kept = sorted(name for name, n in counts.items() if n >= enough and not name.startswith(SILENCE))
        return cls((SILENCE, *kept))

    def __len__(self) -> int:
        return len(self.names)

    def number(self, name: str) -> int:
        """Return the phone's number: its own, or that of its longest known prefix; silence if there is none."""
        for length in range(len(name), 0, -1):
            if name[:length] in self._numbers:
                return self._numbers[name[:length]]
        return 0


LABEL_DELAY = 2
"""Codec positions (80 ms) by which framewise phone labels lag: a causal encoder names a phone after processing it."""


def positions(codec: Mimi, mel_BMF: Tensor) -> Tensor:
    """Log-mel frames to a codec's output, not delayed, `[B, P, D]`: 25 Hz, of Whisper's encoder 50 Hz."""
    if isinstance(codec.encoder, WhisperEncoder):
        return codec.encoder.hidden(mel_BMF)[-1]
    x, _ = codec.encoder(mel_BMF)
    x_BPD, _ = codec.encoder_transformer(x.transpose(1, 2))
    return cast(Tensor, x_BPD)
