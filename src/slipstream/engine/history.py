"""The text of a stream as its client keeps it, so that a session on another engine can continue with it.

A piece of it is URL-safe base64 of: the version (1 byte), the tokenizer (4 bytes), and numbers in LEB128: the first
frame, then for each text token the pads before it and the token, then the pads at the end.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slipstream.errors import ConfigError
from slipstream.events import History
from slipstream.model.config import PAD_ID
from slipstream.model.text import Tokenizer

PIECE_FRAMES = 12
"""Frames in one event."""
MAX_FRAMES = 3000
"""Frames of text that a session may begin with: 4 min."""
MAX_FRAME = 2**31
_VERSION = 1
_HEAD_BYTES = 5


@dataclass(frozen=True, slots=True)
class Continuation:
    """A session that continues a longer stream on an engine that does not have its state.

    The session repeats the last audio of that stream, whose text it is given: its model reads what was written, and
    its `History` follows the given text. The clock of the session begins at 0.

    Args:
        first_frame: The number of the session's first frame in the longer stream.
        pieces: The texts of the `History` events of that stream, in their order, around and after the first frame.

    Raises:
        ConfigError: The number is negative or too large.

    Example:
        >>> options = SessionOptions(continues=Continuation(first_frame=500, pieces=kept))
    """

    first_frame: int = 0
    pieces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.first_frame < MAX_FRAME:
            raise ConfigError(f"first frame {self.first_frame}: expected 0 to {MAX_FRAME - 1}")

    def text(self, tokenizer: Tokenizer, text_vocab: int | None = None) -> dict[int, int]:
        """Return the token of each frame, by the number of the frame in the session; -1 is the frame before its first.

        Where pieces overlap, the later one counts. Text that was written with another tokenizer is left out.

        Raises:
            ConfigError: A piece is invalid, or the pieces are too long.
        """
        found: dict[int, int] = {}
        total = 0
        for piece in self.pieces:
            first, tokens = decode(piece, tokenizer, text_vocab)
            total += len(tokens)
            if total > MAX_FRAMES:
                raise ConfigError(f"history: more than {MAX_FRAMES} frames")
            for frame, token in enumerate(tokens, start=first - self.first_frame):
                if frame >= -1:
                    found[frame] = token
        return found


class HistoryWriter:
    """Collects the text of a stream in pieces.

    Args:
        first_frame: The number of the stream's first frame.
        tokenizer: The tokenizer of the text.
    """

    def __init__(self, first_frame: int, tokenizer: Tokenizer) -> None:
        self._offset, self._tokenizer = first_frame, tokenizer
        self._end = 0
        self._tokens: list[int] = []

    def add(self, tokens: Sequence[int], end: int) -> None:
        """Add tokens, the last one that of the frame before `end`, in the session. Negative frames are left out."""
        self._tokens += tokens[max(0, len(tokens) - end) :]
        self._end = end

    def take(self) -> list[History]:
        """Return a piece if one is complete."""
        if len(self._tokens) < PIECE_FRAMES:
            return []
        end = self._end + self._offset
        text = encode(end - len(self._tokens), self._tokens, self._tokenizer)
        self._tokens = []
        return [History(end, text)]


def encode(first: int, tokens: Iterable[int], tokenizer: Tokenizer) -> str:
    """Return a piece of history: the tokens of the frames from `first` on."""
    data = bytearray([_VERSION, *tokenizer.digest])
    _put(data, first)
    pads = 0
    for token in tokens:
        if token == PAD_ID:
            pads += 1
        else:
            _put(data, pads)
            _put(data, token)
            pads = 0
    _put(data, pads)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(piece: str, tokenizer: Tokenizer, text_vocab: int | None = None) -> tuple[int, list[int]]:
    """Return the first frame of a piece and the token of each; none if another tokenizer wrote them.

    Args:
        piece: A text of `History`.
        tokenizer: The tokenizer of the model.
        text_vocab: Text tokens of the model; None has those of the tokenizer.

    Raises:
        ConfigError: The piece is invalid.
    """
    try:
        data = base64.b64decode(piece + "=" * (-len(piece) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise ConfigError(f"history {piece!r:.40}: not URL-safe base64") from error
    if len(data) <= _HEAD_BYTES or data[0] != _VERSION:
        raise ConfigError(f"history {piece!r:.40}: expected a text of this server's `history` messages")
    numbers = _numbers(data[_HEAD_BYTES:], piece)
    if len(numbers) % 2:
        raise ConfigError(f"history {piece!r:.40}: its end is missing")
    if data[1:_HEAD_BYTES] != tokenizer.digest:
        return numbers[0], []
    tokens: list[int] = []
    vocabulary = min(tokenizer.vocab_size, text_vocab or tokenizer.vocab_size)
    for pads, token in zip(numbers[1:-1:2], numbers[2::2], strict=True):
        if token >= vocabulary or token == PAD_ID:
            raise ConfigError(f"history: {token} is no text token of this model, which has {vocabulary}")
        _pad(tokens, pads)
        tokens.append(token)
    _pad(tokens, numbers[-1])
    if numbers[0] + len(tokens) > MAX_FRAME:
        raise ConfigError(f"history: frame {numbers[0]} is too large")
    return numbers[0], tokens


def _pad(tokens: list[int], pads: int) -> None:
    if len(tokens) + pads > MAX_FRAMES:
        raise ConfigError(f"history: more than {MAX_FRAMES} frames")
    tokens.extend([PAD_ID] * pads)


def _put(data: bytearray, number: int) -> None:
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)


def _numbers(data: bytes, piece: str) -> list[int]:
    numbers, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if number > MAX_FRAME or shift > 35:
            raise ConfigError(f"history {piece!r:.40}: a number is too large")
        if byte < 0x80:
            numbers.append(number)
            number = shift = 0
    if shift:
        raise ConfigError(f"history {piece!r:.40}: its end is missing")
    return numbers
