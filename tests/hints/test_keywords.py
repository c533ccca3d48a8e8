"""The trie of keywords: which tokens get a bonus, and when it is taken back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from slipstream.hints import Keyword
from slipstream.hints.keywords import LETTER_BONUS, MAX_BONUS, SURE, KeywordTrie, Node, Place
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.text import Tokenizer
from slipstream.testing import tiny_tokenizer, tokenizer_proto

SURE_LOGPROB, UNSURE = math.log(SURE), -1.0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def text_of(tokenizer: Tokenizer, token: int) -> str:
    return b" ".join(tokenizer.segments(token) or ()).decode("utf-8", "replace")


def gain(trie: KeywordTrie, node: Node, token: int, plain: int, logprob: float) -> tuple[Node, float]:
    """What a token earns that is as likely as the best one without a bonus."""
    place, score = trie.gain(Place(node), token, logprob, plain, logprob)
    return place.node, score


def write(
    trie: KeywordTrie, tokens: list[int], plain: int | None = None, logprob: float = UNSURE, doubt: float = 0.0
) -> tuple[Node, float]:
    """Follow tokens from the root.

    `plain`: the best token without a bonus, by default the token itself; `doubt`: how much likelier it is, in nats.
    """
    place, score = Place(trie.root), 0.0
    for token in tokens:
        place, more = trie.gain(place, token, logprob - doubt, token if plain is None else plain, logprob)
        score += more
    return place.node, score


def test_every_segmentation_of_a_phrase_leads_to_its_end(tokenizer: Tokenizer) -> None:
    trie = KeywordTrie([Keyword("seven")], tokenizer)
    ends = []

    def walk(node: Node, text: str) -> None:
        biases = trie.biases(node)
        for token in biases.id_N.tolist():
            following = trie.follow(node, token)
            if following.complete:
                ends.append(text + text_of(tokenizer, token))
            else:
                walk(following, text + text_of(tokenizer, token))

    walk(trie.root, "")
    assert len(ends) > 1, "this vocabulary writes the word in several ways"
    assert {end.strip().lower() for end in ends} == {"seven"}


def test_the_bonus_grows_with_the_letters_up_to_a_limit(tokenizer: Tokenizer) -> None:
    trie = KeywordTrie([Keyword("seventeen")], tokenizer)
    tokens, bonuses = tokenizer.encode("seventeen"), []
    for length in range(1, len(tokens) + 1):
        bonuses.append(write(trie, tokens[:length])[1])
    assert bonuses == sorted(bonuses)
    assert bonuses[-1] == pytest.approx(MAX_BONUS)
    assert write(KeywordTrie([Keyword("seventeen", 2.0)], tokenizer), tokens)[1] == pytest.approx(2 * MAX_BONUS)


def test_an_unfinished_phrase_gives_its_bonus_back(tokenizer: Tokenizer) -> None:
    trie = KeywordTrie([Keyword("seventeen")], tokenizer)
    tokens = tokenizer.encode("seventeen")
    assert len(tokens) > 1
    for ending in (PAD_ID, WORD_ID, tokenizer.encode("one")[0]):
        node, score = write(trie, [*tokens[:-1], ending])
        assert node is trie.root
        assert score == pytest.approx(0.0)
    node, score = write(trie, [*tokens, PAD_ID, WORD_ID, *tokenizer.encode("one")])
    assert score == pytest.approx(MAX_BONUS)


def test_a_phrase_of_two_words_continues_over_a_pause(tokenizer: Tokenizer) -> None:
    trie = KeywordTrie([Keyword("seven one")], tokenizer)
    first, second = tokenizer.encode("seven"), tokenizer.encode("one")
    _, whole = write(trie, [WORD_ID, *first, PAD_ID, PAD_ID, WORD_ID, *second, PAD_ID])
    assert whole == pytest.approx(MAX_BONUS)
    _, part = write(trie, [WORD_ID, *first, PAD_ID, WORD_ID, *tokenizer.encode("two"), PAD_ID])
    assert part == pytest.approx(0.0)


def test_no_bonus_begins_a_word_where_the_model_begins_none(tokenizer: Tokenizer) -> None:
    trie = KeywordTrie([Keyword("afternoon")], tokenizer)
    first = tokenizer.encode("afternoon")[0]
    inner = next(token for token in range(tokenizer.vocab_size) if text_of(tokenizer, token).strip("�").isalpha())
    for plain in (PAD_ID, WORD_ID, inner):
        assert gain(trie, trie.root, first, plain, UNSURE) == (trie.root, 0.0)
    assert gain(trie, trie.root, first, tokenizer.encode("one")[0], UNSURE)[1] > 0


def test_no_bonus_replaces_a_token_that_the_model_is_sure_of(tokenizer: Tokenizer) -> None:
    trie = KeywordTrie([Keyword("afternoon")], tokenizer)
    tokens, other = tokenizer.encode("afternoon"), tokenizer.encode("one")[0]
    assert gain(trie, trie.root, tokens[0], other, SURE_LOGPROB) == (trie.root, 0.0)
    assert gain(trie, trie.root, tokens[0], other, SURE_LOGPROB - 0.01)[1] > 0
    node, score = write(trie, tokens[:1])
    for plain in (PAD_ID, WORD_ID, other, tokens[0]):
        assert gain(trie, node, tokens[1], plain, SURE_LOGPROB) == (trie.root, pytest.approx(-score))
        assert gain(trie, node, tokens[1], plain, SURE_LOGPROB - 0.01)[1] > 0


def test_the_tokens_of_a_phrase_are_together_as_doubtful_as_one_bonus_allows(tokenizer: Tokenizer) -> None:
    trie = KeywordTrie([Keyword("seventeen"), Keyword("two")], tokenizer)
    tokens, other = tokenizer.encode("seventeen"), tokenizer.encode("one")[0]
    assert len(tokens) > 2
    each = MAX_BONUS / len(tokens)
    assert write(trie, tokens, other, doubt=each - 0.01)[1] == pytest.approx(MAX_BONUS)
    for more in (each + 0.01, MAX_BONUS - 0.01):  # the step itself is within the bonus
        node, score = write(trie, tokens, other, doubt=more)
        assert node is trie.root
        assert score == pytest.approx(0.0)
    assert write(trie, [*tokens, *tokens], other, doubt=each - 0.01)[1] == pytest.approx(2 * MAX_BONUS)
    heavy = KeywordTrie([Keyword("seventeen", 2.0)], tokenizer)
    assert write(heavy, tokens, other, doubt=1.5 * each)[1] == pytest.approx(2 * MAX_BONUS)
    short = tokenizer.encode("two")
    assert write(trie, short, other, doubt=each / len(short))[1] == pytest.approx(0.0)


def test_a_doubtful_phrase_does_not_make_the_next_one_doubtful(tokenizer: Tokenizer) -> None:
    trie = KeywordTrie([Keyword("seventeen"), Keyword("afternoon")], tokenizer)
    first, second, other = tokenizer.encode("seventeen"), tokenizer.encode("afternoon"), tokenizer.encode("one")[0]
    place, _ = trie.gain(Place(trie.root), first[0], UNSURE - 0.9 * MAX_BONUS, other, UNSURE)
    assert place.doubt == pytest.approx(0.9 * MAX_BONUS)
    place, _ = trie.gain(place, second[0], UNSURE - 1.0, other, UNSURE)
    assert place.doubt == pytest.approx(1.0)
    place, _ = trie.gain(place, other, UNSURE, other, UNSURE)
    assert place == Place(trie.root)


def test_a_token_that_the_model_writes_itself_earns_its_bonus(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("seventeen")
    _, score = write(KeywordTrie([Keyword("seventeen")], tokenizer), tokens, logprob=SURE_LOGPROB / 2)
    assert score == pytest.approx(MAX_BONUS)


def test_the_first_letters_of_a_phrase_earn_nothing(tokenizer: Tokenizer) -> None:
    trie = KeywordTrie([Keyword("seventeen")], tokenizer)
    pieces = {text_of(tokenizer, token): token for token in trie.biases(trie.root).id_N.tolist()}
    node, score = write(trie, [pieces[" s"]])
    assert score == 0.0
    assert node is not trie.root
    assert write(trie, tokenizer.encode("seventeen")[:3])[1] == pytest.approx(2 * LETTER_BONUS)  # "seve"


def test_short_phrases_get_less_per_letter(tokenizer: Tokenizer) -> None:
    _, short = write(KeywordTrie([Keyword("to")], tokenizer), tokenizer.encode("to"))
    assert 0 < short < LETTER_BONUS


def test_phrases_that_the_vocabulary_cannot_write_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "no_bytes.model"
    path.write_bytes(tokenizer_proto(byte_fallback=False))
    tokenizer = Tokenizer(path)
    trie = KeywordTrie([Keyword("日本")], tokenizer)
    assert len(trie.biases(trie.root).id_N) == 0
    trie = KeywordTrie([Keyword("日本"), Keyword("word")], tokenizer)
    assert len(trie.biases(trie.root).id_N) > 0
