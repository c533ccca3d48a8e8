"""Whisper's text decoder as a teacher of the text stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.whispers import VOCABULARY, D, decoder, small_tokenizer, whispers

from slipstream.errors import ConfigError
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.text import Tokenizer
from slipstream.train.text_teacher import TextTeacher

FRENCH = VOCABULARY | {"<|fr|>": len(VOCABULARY)}
PROMPT = "<|startoftranscript|> <|{}|> <|transcribe|> <|notimestamps|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def teacher(tokenizer: Tokenizer, *languages: str) -> TextTeacher:
    return TextTeacher(decoder(vocabulary=FRENCH), FRENCH, tokenizer, languages, torch.float32)


def expected(tokenizer: Tokenizer, words: list[str], language: str, scores: torch.Tensor, audio_D: torch.Tensor):
    """The loss of a row, in which `scores` `[N, V]` are those of its tokens."""
    ids = [FRENCH[token] for token in PROMPT.format(language).split()]
    taught = {tokenizer.encode(word)[0]: FRENCH["Ġ" + word] for word in ("hello", "hel", "h")}
    theirs = [taught[tokenizer.encode(word)[0]] for word in words]
    text = [tokenizer.encode(word)[0] for word in words]
    pieces = [i for i in range(tokenizer.vocab_size) if i > PAD_ID and tokenizer.segments(i) is not None]
    names = [b" ".join(tokenizer.segments(i) or ()).decode().replace(" ", "Ġ") for i in pieces]
    given = whispers(decoder(vocabulary=FRENCH), ids + theirs[:-1], audio_D)[3:]
    shares = given[:, [FRENCH[name] for name in names]].softmax(-1)
    ours = scores[:, pieces].log_softmax(-1)
    labels = ours[range(len(text)), [pieces.index(token) for token in text]]
    return (labels - (shares * ours).sum(-1)).sum()


def heard_language(audio_D: torch.Tensor) -> str:
    scores = whispers(decoder(vocabulary=FRENCH), [FRENCH["<|startoftranscript|>"]], audio_D)[0]
    return "en" if scores[FRENCH["<|en|>"]] > scores[FRENCH["<|fr|>"]] else "fr"


def test_tokens_follow_whispers_probabilities_in_the_language_that_it_detects(tokenizer: Tokenizer) -> None:
    torch.manual_seed(1)
    rows = [["hello", "hel", "hello"], ["h", "hello"]]
    audio = [torch.randn(D) for _ in range(40)]
    en = next(a for a in audio if heard_language(a) == "en")
    fr = next(a for a in audio if heard_language(a) == "fr")
    text = np.full((2, 9), PAD_ID)
    scores = torch.randn(2, 9, tokenizer.vocab_size)
    frames = [[2, 4, 7], [3, 8]]
    for row, (words, at) in enumerate(zip(rows, frames, strict=True)):
        text[row, at] = [tokenizer.encode(word)[0] for word in words]
        text[row, at[0] - 1] = WORD_ID
    features = torch.stack([en, fr])[:, None].expand(2, 5, D)
    found = teacher(tokenizer, "en", "fr").loss(scores, text, text >= 0, features)
    parts = [
        expected(tokenizer, words, language, scores[row, at], audio_D)
        for row, (words, at, language, audio_D) in enumerate(zip(rows, frames, ("en", "fr"), (en, fr), strict=True))
    ]
    torch.testing.assert_close(found, sum(parts), rtol=1e-4, atol=1e-4)


def test_hidden_frames_and_tokens_after_the_last_position_do_not_count(tokenizer: Tokenizer) -> None:
    (hello,) = tokenizer.encode("hello")
    own, features = teacher(tokenizer, "en"), torch.randn(1, 5, D)
    text = np.full((1, 40), hello)
    scores = torch.randn(1, 40, tokenizer.vocab_size)
    fits = len(decoder().tensors["positions"]) - 3
    short = own.loss(scores[:, :fits], text[:, :fits], text[:, :fits] >= 0, features)
    torch.testing.assert_close(own.loss(scores, text, text >= 0, features), short)
    assert short != 0
    mask = np.zeros((1, 40), np.bool_)
    assert own.loss(scores, text, mask, features) == 0
    mask[0, :2] = True
    seen = own.loss(scores, text, mask, features)
    torch.testing.assert_close(seen, own.loss(scores[:, :2], text[:, :2], mask[:, :2], features))


def test_scores_that_are_whispers_have_the_least_loss(tokenizer: Tokenizer) -> None:
    """Next to the labels' cross-entropy: what the two are together is the cross-entropy with the teacher."""
    own, audio_D = teacher(tokenizer, "en"), torch.randn(D)
    text = np.array([tokenizer.encode("hello")])
    scores = torch.zeros(1, 1, tokenizer.vocab_size, requires_grad=True)
    optimizer = torch.optim.SGD([scores], lr=2.0)
    pieces = torch.tensor([i for i in range(tokenizer.vocab_size) if i > PAD_ID and tokenizer.segments(i) is not None])
    label = torch.tensor([int((pieces == text[0, 0]).nonzero())])
    for _ in range(400):
        optimizer.zero_grad()
        labels = torch.nn.functional.cross_entropy(scores[0][:, pieces], label)
        (own.loss(scores, text, text >= 0, audio_D.expand(1, 5, D)) + labels).backward()
        optimizer.step()
    prompt = [FRENCH[token] for token in PROMPT.format("en").split()]
    names = [b" ".join(tokenizer.segments(int(i)) or ()).decode().replace(" ", "Ġ") for i in pieces]
    theirs = whispers(decoder(vocabulary=FRENCH), prompt, audio_D)[-1][[FRENCH[name] for name in names]]
    torch.testing.assert_close(scores[0][:, pieces].softmax(-1)[0], theirs.softmax(-1), atol=1e-3, rtol=1e-2)


def test_a_vocabulary_of_other_pieces_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    less = {token: i for token, i in FRENCH.items() if token != "Ġhello"}
    with pytest.raises(ConfigError, match=r"1 pieces of data\.tokenizer are not Whisper's, such as 'Ġhello'"):
        TextTeacher(decoder(), less, tokenizer, ["en"], torch.float32)
    with pytest.raises(ConfigError, match=r"distil\.text: Whisper has none of the languages xx"):
        TextTeacher(decoder(), FRENCH, tokenizer, ["xx"], torch.float32)
