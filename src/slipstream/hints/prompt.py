"""Text before the speech of a session, as tokens of the frames before its audio."""

from __future__ import annotations

from slipstream.hints.ngram import encode
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.text import Tokenizer

MAX_PROMPT_FRAMES = 100
"""The last words of a prompt that fit into this many frames count (8 s): the LM must keep room for speech."""
GAP_FRAMES = 2
"""Frames without text after each word of a prompt, as in speech."""


def prompt_tokens(prompt: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens of a prompt, one per frame: its last words, each announced as in speech."""
    tokens: list[int] = []
    for word in reversed(prompt.split()):
        written = [WORD_ID, *encode(tokenizer, word), *[PAD_ID] * GAP_FRAMES]
        if len(tokens) + len(written) > MAX_PROMPT_FRAMES:
            break
        tokens = written + tokens
    return tuple(tokens)
