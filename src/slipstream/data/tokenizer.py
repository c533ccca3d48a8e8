"""SentencePiece vocabularies in the layout the text stream needs: 0 marks a word, 3 is PAD."""

from __future__ import annotations

import io
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.errors import SlipstreamError
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.text import Tokenizer

_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", "´": "'"})  # noqa: RUF001
_INSIDE = "'-\u200c\u200d"
"""What a word can have between its letters; the last two join and part letters in Persian and Indic scripts."""
_DOTLESS = str.maketrans({"I": "\u0131", "\u0130": "i"})
_LONGEST_SENTENCE = 1_000_000

MOST_MISSING = 0.05
"""Largest share of a language's letters that a vocabulary may omit."""


def plain_text(text: str, language: str = "") -> str:
    """Lower case, without punctuation: words of letters and their marks, with apostrophes and hyphens inside them.

    A small model need not learn capitals and commas. Words without letters are removed. What a letter or a mark is, is
    the Unicode category's decision, so the letters of every language stay.

    Args:
        text: The text.
        language: A code such as "tr"; Turkish and Azerbaijani have an own lower case of I.

    Example:
        >>> plain_text("Weißt du's? — Größer!")
        "weißt du's größer"
    """
    words = (plain_word(word, language) for word in text.split())
    return " ".join(word for word in words if word)


def plain_word(word: str, language: str = "") -> str:
    """One word of `plain_text`, or the empty string."""
    if language.partition("-")[0] in ("tr", "az"):
        word = word.translate(_DOTLESS)
    composed = unicodedata.normalize("NFC", word.lower().translate(_QUOTES))
    return "".join(c for c in composed if c in _INSIDE or _is_letter(c)).strip(_INSIDE)


def writes_plain(tokenizer: Tokenizer) -> bool:
    """Whether a vocabulary writes plain text only: it has neither capitals nor digits nor punctuation."""
    segments = (tokenizer.segments(token) or () for token in range(tokenizer.vocab_size))
    text = b" ".join(part for parts in segments for part in parts).decode("utf-8", "ignore")
    return all(c in " '-" or (_is_letter(c) and c == c.lower()) for c in text)


@dataclass(frozen=True, slots=True)
class Lost:
    """Letters that a vocabulary does not write: how often each was lost, of how many in all."""

    missing: Counter[str]
    total: int

    @property
    def share(self) -> float:
        return self.missing.total() / self.total if self.total else 0.0

    @property
    def named(self) -> str:
        """The letters that are lost most often."""
        return " ".join(letter for letter, _ in self.missing.most_common(10))


def lost_letters(texts: Iterable[str], tokenizer: Tokenizer, plain: bool, language: str = "") -> Lost:
    """Count the letters of texts that are not in what the vocabulary writes for them, whatever their case.

    Args:
        texts: The texts.
        tokenizer: The vocabulary.
        plain: Whether the texts are written as `plain_text`.
        language: As in `plain_text`.
    """
    missing: Counter[str] = Counter()
    total = 0
    for text in texts:
        written = plain_text(text, language) if plain else text
        letters = _letters(text, language)
        missing += letters - _letters(tokenizer.decode(tokenizer.encode(written)), language)
        total += letters.total()
    return Lost(missing, total)


def too_few_letters(lost: Lost, language: str) -> str:
    """The message for a vocabulary that omits more than `MOST_MISSING` of a language's letters."""
    return (
        f"the vocabulary omits {lost.share:.0%} of the letters of the texts in {language!r}, such as {lost.named}; "
        f"at most {MOST_MISSING:.0%} may be omitted: `slipstream train tokenizer --extend` adds pieces of this language"
    )


def _letters(text: str, language: str) -> Counter[str]:
    return Counter(c for c in plain_text(unicodedata.normalize("NFKC", text), language) if _is_letter(c))


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


def train_tokenizer(sentences: Iterable[str], path: Path, vocab_size: int, *, hard_limit: bool = True) -> None:
    """Train a unigram SentencePiece model on `sentences` and write it to `path`.

    Ids 0 (unknown, which the text stream reads as: a word comes), 1, 2 and 3 (PAD) are reserved.
    Raises `SlipstreamError` when there is no text, or it does not suit `vocab_size`; without `hard_limit` a vocabulary
    too large for the text becomes smaller.
    """
    import sentencepiece

    lines = [sentence for sentence in sentences if sentence.strip()]
    if not lines:
        raise SlipstreamError("a vocabulary needs text: no sentence has a word")
    if vocab_size <= PAD_ID:
        raise SlipstreamError(f"a vocabulary of {vocab_size} is too small: its first {PAD_ID + 1} ids are reserved")
    proto = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=proto,
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=0.99999,
            unk_id=WORD_ID,
            bos_id=1,
            eos_id=2,
            pad_id=PAD_ID,
            max_sentence_length=_LONGEST_SENTENCE,
            hard_vocab_limit=hard_limit,
            normalization_rule_name="nfkc",
            minloglevel=2,
        )
    except RuntimeError as error:
        raise SlipstreamError(_refusal(str(error), vocab_size)) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.getvalue())


def extend_tokenizer(base: Path, sentences: Iterable[str], path: Path, vocab_size: int) -> None:
    """Write the vocabulary `base` with pieces of `sentences` after its own, up to `vocab_size` in all.

    Every old id keeps its meaning, so a model trained with `base` needs only new rows. A new piece scores less than
    any old one, so that text of the old languages is mostly cut as before; those that the sentences use most are added.
    Raises `SlipstreamError` when `vocab_size` is not larger than `base`, the text has too few new pieces, or `base`
    cannot be read.
    """
    old = _read_vocabulary(base)
    wanted = vocab_size - len(old.pieces)
    if wanted <= 0:
        raise SlipstreamError(f"{base} has {len(old.pieces)} pieces already: give a size above that")
    lines = [sentence for sentence in sentences if sentence.strip()]
    fresh = _most_used(_candidates(lines, old, vocab_size), lines, old)[:wanted]
    if len(fresh) < wanted:
        raise SlipstreamError(f"the text has only {len(fresh)} pieces that {base} lacks, not {wanted}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_extended(old, fresh))


def _read_vocabulary(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at import

    proto = ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise SlipstreamError(f"{path}: cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise SlipstreamError(f"{path}: is not a SentencePiece model") from error
    if not proto.pieces:
        raise SlipstreamError(f"{path}: is not a SentencePiece model: it has no pieces")
    return proto


def _candidates(sentences: Sequence[str], old: Any, vocab_size: int) -> list[str]:
    """The pieces of a vocabulary of the sentences that `old` lacks, up to twice as many as requested."""
    known = {piece.piece for piece in old.pieces}
    with tempfile.TemporaryDirectory() as folder:
        trained = Path(folder) / "new.model"
        train_tokenizer(sentences, trained, 2 * vocab_size, hard_limit=False)
        new = _read_vocabulary(trained)
    return [piece.piece for piece in new.pieces if piece.type == piece.NORMAL and piece.piece not in known]


def _most_used(candidates: Sequence[str], sentences: Sequence[str], old: Any) -> list[str]:
    """The candidates: first all single letters, then what the sentences use next to the old pieces, by how often."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=_extended(old, candidates))
    counts = Counter(piece for sentence in sentences for piece in processor.encode_as_pieces(sentence))
    used = [piece for piece in candidates if counts[piece] or len(piece) == 1]
    return sorted(used, key=lambda piece: (len(piece) > 1, -counts[piece]))


def _extended(old: Any, fresh: Sequence[str]) -> bytes:
    lowest = min(piece.score for piece in old.pieces)
    new = type(old)()
    new.CopyFrom(old)
    for number, piece in enumerate(fresh):
        new.pieces.add(piece=piece, score=lowest - 1 - number / len(fresh), type=new.pieces[0].NORMAL)
    extended: bytes = new.SerializeToString()
    return extended


def _refusal(message: str, size: int) -> str:
    """Explain a message of SentencePiece in terms of the size and the text."""
    if most := re.search(r"value <= (\d+)", message):
        return f"the text is too small for a vocabulary of {size}: it has pieces for {most[1]} at most"
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"a vocabulary of {size} is too small: the characters of the text alone need {least[1]}"
    if "sentences_.empty()" in message:
        return f"a vocabulary needs sentences: a line may have {_LONGEST_SENTENCE} bytes, and every line is longer"
    return f"cannot train a vocabulary of {size}: {message.partition('] ')[2] or message}"
