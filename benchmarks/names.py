"""Rare names, and sentences for them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

CANDIDATES = Path(__file__).with_name("names.txt").read_text(encoding="utf-8").split()
"""Names, from easy to hard for a small model."""

SENTENCES = (
    "I talked to {name} about the new house.",
    "The letter from {name} came this morning.",
    "We will meet {name} at the station tonight.",
    "My friend {name} lives near the river.",
    "Have you seen {name} since last week?",
    "They gave the money to {name} and went home.",
    "She said that {name} was late again.",  # style: allow
    "Please call {name} before the dinner.",
    "The book by {name} is on the table.",
    "Nobody knew where {name} had gone.",
    "Yesterday {name} told us a long story.",  # style: allow
)

_STARTS = (
    "Bal",
    "Cor",
    "Dun",
    "Fel",
    "Gar",
    "Hol",
    "Jar",
    "Kel",
    "Lor",
    "Mar",
    "Nel",
    "Orm",
    "Pel",
    "Quen",
    "Ral",
    "Sel",
)
_MIDDLES = ("a", "e", "i", "o", "u", "ando", "ari", "eno", "ister", "ola")
_ENDS = ("bury", "dale", "ford", "ham", "lock", "more", "ner", "son", "ton", "vik")
OTHERS = tuple(f"{start}{middle}{end}" for start, middle, end in product(_STARTS, _MIDDLES, _ENDS))
"""More names, for longer lists."""
