"""Texts to sentences that a synthesiser reads as they are written."""

from __future__ import annotations

from recipes.languages.sentences import sentences


def test_sentences_are_split_once_each_and_figures_authors_and_short_ones_are_left_out() -> None:
    fortunes = (
        "Über das Glück schreibt\nman gern. Es kam 1848 so weit.\n\t\t-- Ein Autor, der dies schrieb.\n%\n"
        "Wer wagt, gewinnt! Ja. Das gibt es - oder\nnicht?\n%\nWer wagt, gewinnt!\n"
    )
    russian = "Мороз и солнце.\n\nhier fehlt der Anfang."
    expected = {"Über das Glück schreibt man gern.", "Wer wagt, gewinnt!", "Das gibt es - oder nicht?"}
    assert sorted(sentences([fortunes, russian])) == sorted(expected | {"Мороз и солнце."})


def test_the_order_is_random_but_always_the_same() -> None:
    texts = ["Eins und zwei sind drei. Drei und vier sind sieben. Fünf und eins sind sechs. Vier und vier sind acht."]
    assert sentences(texts) == sentences(list(texts))
    assert sentences(texts) != sorted(sentences(texts))
