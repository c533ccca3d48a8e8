"""The search for the text of one stream, on scripted choices."""

from __future__ import annotations

import math

import pytest

from slipstream.hints import Hints, Keyword
from slipstream.hints.keywords import KeywordTrie
from slipstream.hints.ngram import NGram
from slipstream.hints.search import MAX_PENDING, NO_BIASES, Decision, Rival, Search, new_search
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import Choice
from slipstream.model.text import Tokenizer
from slipstream.testing import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def choose(probabilities: dict[int, float], picked: int | None = None) -> Choice:
    """A choice of one row; the best token is also the plain one."""
    tokens = sorted(probabilities, key=lambda token: -probabilities[token])
    logprobs = [math.log(probabilities[token]) for token in tokens]
    return Choice(tokens[0] if picked is None else picked, tokens, logprobs, tokens[0], logprobs[0])


def one(tokenizer: Tokenizer, word: str) -> int:
    """A word of one token."""
    (token,) = tokenizer.encode(word)
    return token


def text(decisions: list[Decision]) -> list[int]:
    return [token for decision in decisions for token, _ in decision.written]


def test_one_hypothesis_writes_the_best_token_immediately(tokenizer: Tokenizer) -> None:
    search = Search(1, tokenizer)
    word = one(tokenizer, "word")
    decisions = [
        search.advance([choose(row)])
        for row in ({PAD_ID: 0.9, WORD_ID: 0.1}, {WORD_ID: 0.6, 5: 0.4}, {word: 0.7, PAD_ID: 0.3})
    ]
    assert text(decisions) == [PAD_ID, WORD_ID, word]
    assert all(not decision.copies and not decision.forced for decision in decisions)
    assert decisions[0].written == [(PAD_ID, pytest.approx(math.log(0.9)))]


def test_a_second_hypothesis_wins_when_what_follows_is_likelier(tokenizer: Tokenizer) -> None:
    search = Search(2, tokenizer)
    word, after, the = (one(tokenizer, text) for text in ("word", "after", "the"))
    first = search.advance([choose({word: 0.6, after: 0.4}), choose({PAD_ID: 1.0})])
    assert first.written == []
    assert first.copies == [(0, 1)]
    assert first.forced == [(1, after)]
    assert (first.best, first.token) == (0, word)
    second = search.advance([choose({the: 0.1, WORD_ID: 0.05}), choose({the: 0.9, WORD_ID: 0.1})])
    assert (second.best, second.token) == (1, the)
    assert [token for token, _ in search.end()] == [after, the]


def test_hypotheses_that_differ_in_timing_only_are_one(tokenizer: Tokenizer) -> None:
    search = Search(2, tokenizer)
    word, after = one(tokenizer, "word"), one(tokenizer, "after")
    early = search.advance([choose({word: 0.5, PAD_ID: 0.45, WORD_ID: 0.05}), choose({PAD_ID: 1.0})])
    assert len(early.copies) == 1  # with the word, and without: pad and announcement have the same text
    late = search.advance([choose({PAD_ID: 0.9, after: 0.1}), choose({word: 0.99, PAD_ID: 0.01})])
    # Two texts: "word", early with 0.5 * 0.9 rather than late with 0.45 * 0.99, and "word after".
    assert late.written == [(word, pytest.approx(math.log(0.5)))]


def test_a_token_is_written_after_a_limit_even_if_hypotheses_disagree(tokenizer: Tokenizer) -> None:
    search = Search(2, tokenizer)
    word, after = one(tokenizer, "word"), one(tokenizer, "after")
    decisions = [search.advance([choose({word: 0.6, after: 0.4})] * 2)]
    for _ in range(MAX_PENDING):
        decisions.append(search.advance([choose({PAD_ID: 0.99})] * 2))
        if decisions[-1].written:
            break
    assert len(decisions) == MAX_PENDING + 1
    assert text(decisions)[0] == word


def test_a_copy_continues_on_its_own(tokenizer: Tokenizer) -> None:
    search = Search(2, tokenizer)
    word, after = one(tokenizer, "word"), one(tokenizer, "after")
    search.advance([choose({word: 0.6, after: 0.4})] * 2)
    other = search.copy()
    search.advance([choose({PAD_ID: 0.001}), choose({PAD_ID: 0.999})])
    assert other.end()[0][0] == word
    assert search.end()[0][0] == after


def test_a_keyword_replaces_a_word_and_not_silence(tokenizer: Tokenizer) -> None:
    trie = KeywordTrie([Keyword("afternoon")], tokenizer)
    (start, *_), other = tokenizer.encode("afternoon"), one(tokenizer, "word")
    search = Search(1, tokenizer, trie)
    bias = dict(zip(search.biases(0).id_N.tolist(), search.biases(0).bias_N.tolist(), strict=True))
    assert bias[start] > 0
    silent = Choice(start, [start, PAD_ID], [math.log(0.3), math.log(0.7)], PAD_ID, math.log(0.7))
    decision = search.advance([silent])
    assert decision.written == [(PAD_ID, pytest.approx(math.log(0.7)))]
    assert decision.forced == [(0, PAD_ID)]
    spoken = Choice(start, [start, other], [math.log(0.3), math.log(0.6)], other, math.log(0.6))
    decision = search.advance([spoken])
    assert decision.written == [(start, pytest.approx(math.log(0.3)))]
    assert decision.forced == []


def test_words_that_follow_each_other_in_the_text_are_likelier(tokenizer: Tokenizer) -> None:
    lm = NGram("sells sea shells\n" * 3 + "the fox jumps over the dog\n", tokenizer)

    def gain(*words: str) -> float:
        context, total = lm.start, 0.0
        for word in words:
            for token in tokenizer.encode(word):
                context, more = lm.extend(context, b" ".join(tokenizer.segments(token) or ()), pause=False)
                total += more
            context, more = lm.extend(context, b"", pause=True)
            total += more
        return total

    assert gain("sells", "sea", "shells") > gain("sells", "sea", "dog")
    assert gain("naïve") == pytest.approx(0.0, abs=2.0)
    search = Search(2, tokenizer, None, lm)
    for word in ("sells", "sea"):
        for token in tokenizer.encode(word):
            search.advance([choose({token: 0.9})] * 2)
    shells, dog = tokenizer.encode("shells"), tokenizer.encode("dog")
    search.advance([choose({dog[0]: 0.5, shells[0]: 0.45})] * 2)
    for left, right in zip([*dog[1:], PAD_ID, PAD_ID], [*shells[1:], PAD_ID, PAD_ID], strict=False):
        search.advance([choose({left: 0.9}), choose({right: 0.9})])
    written = b"".join(b" ".join(tokenizer.segments(token) or ()) for token, _ in search.end())
    assert written.strip().startswith(b"sells sea sh") or written.strip().startswith(b"sh")


def test_a_session_without_hints_has_no_search(tokenizer: Tokenizer) -> None:
    assert new_search(Hints(prompt="Dear"), tokenizer) is None
    search = new_search(Hints(alternatives=3), tokenizer)
    assert search is not None
    assert search.width == 3
    search = new_search(Hints(beam=2), tokenizer)
    assert search is not None
    assert search.biases(0) is NO_BIASES


def test_the_words_of_other_hypotheses_are_its_rivals_once_complete(tokenizer: Tokenizer) -> None:
    search = Search(2, tokenizer)
    word, after, the = (one(tokenizer, text) for text in ("word", "after", "the"))
    pad = choose({PAD_ID: 1.0})
    search.advance([choose({PAD_ID: 1.0}), pad])
    search.advance([choose({word: 0.6, after: 0.4}), pad])
    search.advance([pad, pad])
    assert search.rivals == []
    search.advance([pad, pad])
    assert search.rivals == [Rival(0, "after", pytest.approx(math.log(0.6 / 0.4)))]
    search.advance([choose({the: 1.0}), choose({the: 1.0})])
    assert [rival.text for rival in search.rivals] == ["after"]


def test_a_rival_may_go_on_with_a_word_that_is_partly_written(tokenizer: Tokenizer) -> None:
    search = Search(2, tokenizer)
    begun = one(tokenizer, "word")
    pieces = [t for t in range(4, tokenizer.vocab_size) if (s := tokenizer.segments(t)) and len(s) == 1 and s[0]]
    first, second = pieces[:2]
    pad = choose({PAD_ID: 1.0})
    search.advance([choose({begun: 1.0}), pad])
    search.advance([choose({first: 0.7, second: 0.3}), pad])
    search.advance([pad, pad])
    search.advance([pad, pad])
    (rival,) = search.rivals
    assert rival.place == -1
    assert rival.text == "word" + tokenizer.decode([second])
