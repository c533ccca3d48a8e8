"""Text: the tokenizer, words with times to a delayed token stream, and the way back.

A stream holds one token a frame. Token number i stands beside audio frame i (counted from 0), and a Runner yields it
once i frames are heard; number 0 comes from the initial tokens, before any audio, and never carries text.
With a delay of D frames, a word that starts in audio frame f has its first token at i = f + D, one token a frame
after that, `WORD_ID` just before where that place is free, and `PAD_ID` everywhere else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from slipstream.arrays import IntArray
from slipstream.errors import CheckpointError
from slipstream.events import OpenWord, PartialWord, Word
from slipstream.model.config import PAD_ID, WORD_ID

FRAME_RATE = 12.5
"""Frames a second of every published model."""

PAUSE_FRAMES = 5
"""Pads in a row that end a word. A word before a pause so ends 6 frames (0.48 s) after the start of its last token:
about what a one-syllable word lasts before a pause, and the soonest that it can be told from a slow word."""

MAX_WORD_TOKENS = 128
"""Tokens after which a word is ended whatever follows: a model gone round in circles must not write one for ever."""

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
        """Text to tokens. Characters that the vocabulary cannot write are left out: never a special token."""
        return [token for token in self._processor.encode(text) if self._segments[token] is not None]

    def decode(self, tokens: Iterable[int]) -> str:
        """Tokens to text; special tokens are skipped."""
        pieces = (self.segments(token) for token in tokens)
        return b"".join(b" ".join(piece) for piece in pieces if piece).decode("utf-8", "ignore").strip()

    def segments(self, token: int) -> tuple[bytes, ...] | None:
        """The UTF-8 text of a token, cut where a new word starts; None for a special token.

        The first part goes on with the word before it, each further part starts a word: `▁hello` is `(b"", b"hello")`.
        Raises `CheckpointError` for a token outside the vocabulary.
        """
        if not 0 <= token < len(self._segments):
            raise CheckpointError(
                f"the model wrote token {token}, but its tokenizer has only {len(self._segments)}: "
                "the two do not belong together"
            )
        return self._segments[token]


def encode_stream(
    words: Iterable[Word],
    tokenizer: Tokenizer,
    delay_frames: int,
    num_frames: int,
    frame_rate: float = FRAME_RATE,
) -> IntArray:
    """Words with times to the delayed token stream that a model learns to write: int64 `[num_frames]`.

    A word whose place is still taken by the tokens of the words before it waits until they are out and comes late by
    that much, without a `WORD_ID`; none is ever dropped, so speech denser than one token a frame falls behind, and
    catches up in the next pause. Tokens that fall after `num_frames` are cut, as in a crop of a longer recording.
    Word ends are not written. `WordDecoder` is the inverse: same texts; starts rounded down to a frame (later for words
    that waited); an end is the next start or the pause that `PAUSE_FRAMES` describes. Words are taken in the order of
    their starts; white space in a text makes several words of it.
    Raises `ValueError` for a start that is negative or not a number.
    """
    stream = np.full(num_frames, PAD_ID, np.int64)
    free = 1
    for word in sorted(words, key=lambda word: word.start):
        if not 0 <= word.start < math.inf:
            raise ValueError(f"the word {word.text!r} starts at {word.start} s, which is not in the audio")
        tokens = tokenizer.encode(word.text)
        # A start that was computed as frame / rate may lie a rounding error before its own frame.
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
    """A delayed token stream to words with times, one token at a time.

    A word starts at the frame of its `WORD_ID` minus the delay, or of its first token where none was written. It ends
    where the next one starts, at a pause (`PAUSE_FRAMES`), or at the end of the audio. Starts and ends never run
    backwards, are never negative, and never lie beyond the audio heard so far.

    `offset_frames` is added to every frame: minus the frames of silence fed before the audio, or the place in the audio
    where a fresh model took over. With `partials`, words that are still being written are told too.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        delay_frames: int,
        frame_rate: float = FRAME_RATE,
        *,
        offset_frames: int = 0,
        partials: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._delay = delay_frames
        self._rate = frame_rate
        self._offset = offset_frames
        self._partials = partials
        self._index = 0
        self._last_end = 0.0
        self._pads = 0
        self._start_frame: int | None = None
        self._start = 0.0
        self._text = b""
        self._tokens = 0
        self._logprob = 0.0

    @property
    def settled_frames(self) -> int:
        """Audio frames whose words are all out and closed: no later token can open a word before this frame."""
        if self._start_frame is not None:
            return self._start_frame
        return self._frame(self._index + 1)

    @property
    def writing_frame(self) -> int | None:
        """The audio frame in which the word that is just being written started; None when the last token was a pad."""
        return self._start_frame if self._pads == 0 else None

    def push(self, token: int, logprob: float = 0.0) -> Sequence[WordEvent]:
        """Read the next token of the stream, the first being number 1. Raises `CheckpointError` for an unknown one."""
        self._index += 1
        if token == PAD_ID:
            return self._pad() if self._start_frame is not None else ()
        if token == WORD_ID:
            events = self._close(self._frame(self._index + 1))
            self._start_frame = self._frame(self._index + 1)
            return events
        segments = self._tokenizer.segments(token)
        if segments is None:
            return self._pad() if self._start_frame is not None else ()
        return self._piece(segments, logprob)

    def flush(self) -> Sequence[WordEvent]:
        """Close the word that is open, if any."""
        return self._close(self._pause_frame())

    def copy(self) -> WordDecoder:
        """A decoder in the same state, that goes its own way."""
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
        before = self._word_text() if self._partials else ""
        frame = self._frame(self._index)
        for number, segment in enumerate(segments):
            if (number and self._text) or self._tokens >= MAX_WORD_TOKENS:
                events += self._close(frame)
                before = ""
            if self._start_frame is None:
                self._start_frame = frame
            if not self._text:
                self._start = self._seconds(self._start_frame)
            self._text += segment
        self._pads = 0
        self._tokens += 1
        self._logprob += logprob
        if self._partials and (text := self._word_text()) and text != before:
            events.append(PartialWord(text, self._start))
        return events

    def _close(self, end_frame: int) -> list[WordEvent]:
        """End the open word where `end_frame` starts; the `OpenWord` comes first where no pad brought it already."""
        events: list[WordEvent] = []
        if self._start_frame is not None and (text := self._word_text()):
            opened = self._open_word(text)
            if self._pads == 0:
                events.append(opened)
            self._last_end = max(opened.start, self._seconds(end_frame))
            events.append(Word(text, opened.start, self._last_end, opened.confidence))
        self._start_frame = None
        self._pads = self._tokens = 0
        self._text = b""
        self._logprob = 0.0
        return events

    def _open_word(self, text: str) -> OpenWord:
        return OpenWord(text, self._start, min(1.0, math.exp(self._logprob)))

    def _word_text(self) -> str:
        # A character whose last bytes are still to come, or never came, is not text.
        return self._text.decode("utf-8", "ignore").strip()

    def _pause_frame(self) -> int:
        """The frame where the open word ends if nothing follows it."""
        return self._frame(self._index - self._pads + PAUSE_FRAMES + 1)

    def _frame(self, index: int) -> int:
        return index + self._offset - self._delay

    def _seconds(self, frame: int) -> float:
        heard = self._index + self._offset
        return max(self._last_end, min(frame, heard) / self._rate)


def _segments(processor: sentencepiece.SentencePieceProcessor, token: int) -> tuple[bytes, ...] | None:
    if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
        return None
    piece = processor.id_to_piece(token)
    if processor.is_byte(token):
        text = bytes([int(piece[1:-1], 16)])  # "<0xE9>"
        return (b"", b"") if text.isspace() else (text,)
    return tuple(part.encode() for part in piece.split("▁"))
