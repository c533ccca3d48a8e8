"""SentencePiece vocabularies in the layout the text stream needs: 0 marks a word, 3 is PAD."""

from __future__ import annotations

import io
import re
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from slipstream.errors import SlipstreamError
from slipstream.model.config import PAD_ID, WORD_ID

_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", "´": "'"})  # noqa: RUF001
_LONGEST_SENTENCE = 1_000_000


def plain_text(text: str) -> str:
    """Lower case, without punctuation: words of letters and their marks, with apostrophes and hyphens inside them.

    A small model need not learn capitals and commas. Words without letters are removed.
    """
    words = (plain_word(word) for word in text.split())
    return " ".join(word for word in words if word)


def plain_word(word: str) -> str:
    """One word of `plain_text`, or the empty string."""
    composed = unicodedata.normalize("NFC", word.lower().translate(_QUOTES))
    return "".join(c for c in composed if c in "'-" or unicodedata.category(c)[0] in "LM").strip("'-")


def train_tokenizer(
    sentences: Iterable[str], path: Path, vocab_size: int, *, coverage: float = 0.99999, hard_limit: bool = True
) -> None:
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
            character_coverage=coverage,
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

    Every old id keeps its meaning, so a model trained with `base` needs only new rows. Raises `SlipstreamError` when
    `vocab_size` is not larger than `base`, the text has too few new pieces, or `base` cannot be read.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at import

    old = ModelProto()
    try:
        old.ParseFromString(base.read_bytes())
    except OSError as error:
        raise SlipstreamError(f"{base}: cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise SlipstreamError(f"{base}: is not a SentencePiece model") from error
    if not old.pieces:
        raise SlipstreamError(f"{base}: is not a SentencePiece model: it has no pieces")
    known = {piece.piece for piece in old.pieces}
    wanted = vocab_size - len(old.pieces)
    if wanted <= 0:
        raise SlipstreamError(f"{base} has {len(old.pieces)} pieces already: give a size above that")
    with tempfile.TemporaryDirectory() as folder:
        trained = Path(folder) / "new.model"
        train_tokenizer(sentences, trained, vocab_size, hard_limit=False)
        new = ModelProto()
        new.ParseFromString(trained.read_bytes())
    lowest = min(piece.score for piece in old.pieces)
    fresh = [piece for piece in new.pieces if piece.type == piece.NORMAL and piece.piece not in known][:wanted]
    if len(fresh) < wanted:
        raise SlipstreamError(f"the text has only {len(fresh)} pieces that {base} lacks, not {wanted}")
    for number, piece in enumerate(fresh):
        # Below every old score: text of the old languages is cut as before wherever the old pieces can write it.
        old.pieces.add(piece=piece.piece, score=lowest - 1 - number / len(fresh), type=piece.type)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(old.SerializeToString())


def _refusal(message: str, size: int) -> str:
    """Explain a message of SentencePiece in terms of the size and the text."""
    if most := re.search(r"value <= (\d+)", message):
        return f"the text is too small for a vocabulary of {size}: it has pieces for {most[1]} at most"
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"a vocabulary of {size} is too small: the characters of the text alone need {least[1]}"
    if "sentences_.empty()" in message:
        return f"a vocabulary needs sentences: a line may have {_LONGEST_SENTENCE} bytes, and every line is longer"
    return f"cannot train a vocabulary of {size}: {message.partition('] ')[2] or message}"
