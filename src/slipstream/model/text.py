"""Text: the tokenizer, and the conversion between words with times and delayed token streams.

A stream has one token per frame. Token i belongs to audio frame i (counted from 0), and a Runner returns it after i
frames; token 0 comes from the initial tokens, before any audio, and is never text. With a delay of D frames, a word
that starts in audio frame f has its first token at i = f + D and one token per frame after that. `WORD_ID` precedes it
if that frame is free. All other tokens are `PAD_ID`.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from slipstream.arrays import IntArray
from slipstream.errors import CheckpointError
from slipstream.events import OpenWord, PartialWord, Word
from slipstream.model.confidence import Calibration
from slipstream.model.config import PAD_ID, WORD_ID

FRAME_RATE = 12.5
"""Frames per second of every published model."""

PAUSE_FRAMES = 5
"""Consecutive pads that end a word. A word before a pause therefore ends 6 frames (0.48 s) after the start of its last
token. That is about the length of a one-syllable word before a pause, and the earliest that a pause can be
distinguished from a slow word."""

MAX_WORD_TOKENS = 128
"""Tokens after which a word always ends, so that a model that repeats itself does not write one endless word."""

WordEvent = PartialWord | OpenWord | Word


class Tokenizer:
    """A SentencePiece model whose ids `WORD_ID` and `PAD_ID` are not text.

    Raises `CheckpointError` when the file is missing, is not a SentencePiece model, or gives those ids to text.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            proto = Path(path).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(proto)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: not a SentencePiece model") from error
        if processor.vocab_size() <= max(WORD_ID, PAD_ID):
            raise CheckpointError(f"{path}: not a SentencePiece model with text in it")
        self.digest = zlib.crc32(proto).to_bytes(4, "big")
        """Differs between tokenizers."""
        self._processor = processor
        self._segments = [_segments(processor, token) for token in range(processor.vocab_size())]
        for token in (WORD_ID, PAD_ID):
            if self._segments[token] is not None:
                raise CheckpointError(
                    f"{path}: id {token} is the text {processor.id_to_piece(token)!r}, but a delayed stream needs "
                    "it as a special token: this tokenizer belongs to another kind of model"
                )

    @property
    def vocab_size(self) -> int:
        return len(self._segments)

    def encode(self, text: str) -> list[int]:
        """Convert text to tokens. Characters that the vocabulary cannot represent are omitted; no token is special."""
        return [token for token in self._processor.encode(text) if self._segments[token] is not None]

    def decode(self, tokens: Iterable[int]) -> str:
        """Convert tokens to text; special tokens are skipped."""
        pieces = (self.segments(token) for token in tokens)
        return b"".join(b" ".join(piece) for piece in pieces if piece).decode("utf-8", "ignore").strip()

    def segments(self, token: int) -> tuple[bytes, ...] | None:
        """The UTF-8 text of a token, cut where a new word starts; None for a special token.

        The first part continues the previous word, each further part starts a word: `▁hello` is `(b"", b"hello")`.
        Raises `CheckpointError` for a token outside the vocabulary.
        """
        if not 0 <= token < len(self._segments):
            raise CheckpointError(
                f"the model wrote token {token}, but its tokenizer has only {len(self._segments)}: "
                "the tokenizer belongs to another model"
            )
        return self._segments[token]


def encode_stream(
    words: Iterable[Word],
    tokenizer: Tokenizer,
    delay_frames: int,
    num_frames: int,
    frame_rate: float = FRAME_RATE,
) -> IntArray:
    """Convert words with times to the delayed token stream that a model learns to write.

    If the place of a word is still occupied by tokens of earlier words, the word is delayed until they are written,
    and has no `WORD_ID`. No word is dropped: speech with more than one token per frame falls behind and catches up in
    the next pause. Tokens after `num_frames` are cut, as in a crop of a longer recording. Word ends are not written.

    `WordDecoder` is the inverse. It gives the same texts; starts are rounded down to a frame, and are later for words
    that were delayed; an end is the next start, or the pause that `PAUSE_FRAMES` describes.

    Args:
        words: Words in any order. White space in a text separates words.
        tokenizer: The tokenizer of the model.
        delay_frames: Frames by which the text lags behind the audio.
        num_frames: Length of the stream.
        frame_rate: Frames per second.

    Returns:
        int64 `[num_frames]`.

    Raises:
        ValueError: A start is negative or not a number.
    """
    stream = np.full(num_frames, PAD_ID, np.int64)
    free = 1
    for word in sorted(words, key=lambda word: word.start):
        if not 0 <= word.start < math.inf:
            raise ValueError(f"the word {word.text!r} starts at {word.start} s, which is not in the audio")
        tokens = tokenizer.encode(word.text)
        # A start that was computed as frame / rate can be a rounding error before its own frame.
        first = max(math.floor(word.start * frame_rate + 1e-6) + delay_frames, free)
        if not tokens or first > num_frames:
            continue
        if first > free:
            stream[first - 1] = WORD_ID
        written = tokens[: num_frames - first]
        stream[first : first + len(written)] = written
        free = first + len(tokens)
    return stream


class WordDecoder:
    """Converts a delayed token stream to words with times, one token at a time.

    A word starts at the frame of its `WORD_ID` minus the delay, or at that of its first token if there is none. It ends
    where the next one starts, at a pause (`PAUSE_FRAMES`), or at the end of the audio. `shift_seconds` is added to all
    of these times. Starts and ends never decrease, are never negative, and are never after the audio that has been
    processed. A shift does not delay words: the text is further behind the audio than any useful shift.

    Args:
        tokenizer: The tokenizer of the model.
        delay_frames: Frames by which the text lags behind the audio.
        frame_rate: Frames per second.
        offset_frames: Added to every frame: minus the frames of silence before the audio, or the place in the audio
            where a model was reset.
        partials: Also return words that are still being written.
        calibration: What the model's probabilities mean; None returns them as they are.
        shift_seconds: Added to starts and ends, for a model whose words are too early (above 0) or too late (below 0).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        delay_frames: int,
        frame_rate: float = FRAME_RATE,
        *,
        offset_frames: int = 0,
        partials: bool = True,
        calibration: Calibration | None = None,
        shift_seconds: float = 0.0,
    ) -> None:
        self._tokenizer = tokenizer
        self._delay = delay_frames
        self._rate = frame_rate
        self._offset = offset_frames
        self._partials = partials
        self._calibration = calibration
        self._shift = shift_seconds * frame_rate  # in frames: 0.12 s is exactly 1.5, so that times have short decimals
        self._index = 0
        self._last_end = 0.0
        self._pads = 0
        self._start_frame: int | None = None
        self._start = 0.0
        self._text = b""
        self._shown = ""  # of it, by the last partial word
        self._tokens = 0
        self._nats = 0.0
        self._pad_nats = 0.0  # of the last pad
        self._gap_nats = 0.0  # of the pads between the last text and that one
        self._omission_nats = 0.0  # of those before the word that is open

    @property
    def frames(self) -> int:
        """Audio frames read so far; negative within the silence before the audio."""
        return self._index + self._offset

    @property
    def settled_frames(self) -> int:
        """Audio frames whose words are all complete: no later token can start a word before this frame."""
        frame = self._frame(self._index + 1) if self._start_frame is None else self._start_frame
        return frame + min(0, math.floor(self._shift))

    @property
    def writing_frame(self) -> int | None:
        """The audio frame where the word that is being written starts, unshifted; None if the last token was a pad."""
        return self._start_frame if self._pads == 0 else None

    def push(self, token: int, logprob: float = 0.0) -> Sequence[WordEvent]:
        """Read the next token of the stream, the first being number 1. Raises `CheckpointError` for an unknown one."""
        self._index += 1
        if token == PAD_ID:
            self._gap_nats += self._pad_nats
            self._pad_nats = -logprob
            return self._pad() if self._start_frame is not None else ()
        if token == WORD_ID:
            events = self._close(self._frame(self._index + 1))
            self._start_frame = self._frame(self._index + 1)
            return events
        segments = self._tokenizer.segments(token)
        if segments is None:
            return self._pad() if self._start_frame is not None else ()
        return self._piece(segments, logprob)

    def time(self, place: int) -> float:
        """Return the time in seconds of the token after `place` further ones, as the start of a word."""
        return max(0.0, (self._frame(self._index + 1 + place) + self._shift) / self._rate)

    def flush(self) -> Sequence[WordEvent]:
        """Close the word that is open, if any."""
        return self._close(self._pause_frame())

    def copy(self) -> WordDecoder:
        """Return an independent decoder in the same state."""
        return copy.copy(self)

    def _pad(self) -> Sequence[WordEvent]:
        self._pads += 1
        if self._pads >= PAUSE_FRAMES:
            return self._close(self._pause_frame())
        if self._pads == 1 and (text := self._word_text()):
            return [self._open_word(text)]
        return ()

    def _piece(self, segments: tuple[bytes, ...], logprob: float) -> list[WordEvent]:
        events: list[WordEvent] = []
        frame = self._frame(self._index)
        for number, segment in enumerate(segments):
            if (number and self._text) or self._tokens >= MAX_WORD_TOKENS:
                events += self._close(frame)
            if self._start_frame is None:
                self._start_frame = frame
            if not self._text:
                self._start = self._seconds(self._start_frame)
                # Without the last pad, where the model may be unsure only in which of two frames the word begins.
                self._omission_nats = self._gap_nats
            self._text += segment
        self._pads = 0
        self._pad_nats = self._gap_nats = 0.0
        self._tokens += 1
        self._nats -= logprob
        if self._partials and (text := self._word_text()) != self._shown:
            self._shown = text
            events.append(PartialWord(text, self._start))
        return events

    def _close(self, end_frame: int) -> list[WordEvent]:
        """End the open word where `end_frame` starts; the `OpenWord` comes first if no pad has caused it already."""
        events: list[WordEvent] = []
        if self._start_frame is not None and (text := self._word_text()):
            opened = self._open_word(text)
            if self._pads == 0:
                events.append(opened)
            self._last_end = max(opened.start, self._seconds(end_frame))
            events.append(Word(text, opened.start, self._last_end, opened.confidence, self._omission()))
        self._start_frame = None
        self._pads = self._tokens = 0
        self._text, self._shown = b"", ""
        self._nats = 0.0
        return events

    def _open_word(self, text: str) -> OpenWord:
        curve = self._calibration and self._calibration.word
        confidence = curve.at(self._nats) if curve else min(1.0, math.exp(-self._nats))
        return OpenWord(text, self._start, confidence)

    def _omission(self) -> float:
        curve = self._calibration and self._calibration.omission
        return curve.at(self._omission_nats) if curve else max(0.0, -math.expm1(-self._omission_nats))

    def _word_text(self) -> str:
        # A character whose last bytes are missing is not text.
        return self._text.decode("utf-8", "ignore").strip()

    def _pause_frame(self) -> int:
        """The frame where the open word ends if nothing follows it."""
        return self._frame(self._index - self._pads + PAUSE_FRAMES + 1)

    def _frame(self, index: int) -> int:
        return index + self._offset - self._delay

    def _seconds(self, frame: int) -> float:
        return max(self._last_end, min(frame + self._shift, self.frames) / self._rate)


def _segments(processor: sentencepiece.SentencePieceProcessor, token: int) -> tuple[bytes, ...] | None:
    if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
        return None
    piece = processor.id_to_piece(token)
    if processor.is_byte(token):
        text = bytes([int(piece[1:-1], 16)])  # "<0xE9>"
        return (b"", b"") if text.isspace() else (text,)
    return tuple(part.encode() for part in piece.split("▁"))
