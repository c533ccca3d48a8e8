"""A vocabulary of Whisper's own pieces: those that a text uses most, as a SentencePiece model.

Whisper's tokenizer merges pairs of bytes in the order of its ids (byte-pair encoding). A SentencePiece model of type
BPE whose scores fall with the id cuts text as it does, except where a piece is left out: then into smaller pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from slipstream.errors import SlipstreamError
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.schema import read_json

_SPACE = "▁"


def read_whisper_vocabulary(path: Path) -> dict[str, int]:
    """Id by token, from a `tokenizer.json`. Raises `SlipstreamError` if it is not that of Whisper."""
    raw = read_json(path)
    try:
        vocabulary: dict[str, int] = dict(raw["model"]["vocab"])
        vocabulary |= {token["content"]: token["id"] for token in raw["added_tokens"]}
    except (KeyError, TypeError) as error:
        raise SlipstreamError(
            f"{path}: expected Whisper's tokenizer.json, with model.vocab and added_tokens"
        ) from error
    return vocabulary


def whisper_tokenizer(vocabulary: Mapping[str, int], sentences: Iterable[str], path: Path, size: int) -> None:
    """Write a SentencePiece model of the `size` pieces of Whisper's that the sentences use most.

    Pieces that are not whole characters are left out. All letters of the text that Whisper has are taken, and a piece
    brings the pieces that it is merged from with it. Raises `SlipstreamError` when the text uses fewer pieces, or has
    more letters.
    """
    import sentencepiece

    ids = {text: number for token, number in vocabulary.items() if (text := _text(token)) is not None}
    processor = sentencepiece.SentencePieceProcessor(model_proto=_model(ids))
    counts = Counter(piece for sentence in sentences for piece in processor.encode_as_pieces(sentence))
    chosen: set[str] = {letter for piece in counts for letter in piece if letter in ids}
    if len(chosen) + PAD_ID + 1 > size:
        raise SlipstreamError(f"the text has {len(chosen)} letters: give a size of at least {len(chosen) + PAD_ID + 1}")
    for piece, _ in counts.most_common():
        if len(chosen) + PAD_ID + 1 >= size:
            break
        new = _merged_from(piece, ids) - chosen
        if len(chosen) + len(new) + PAD_ID + 1 <= size:
            chosen |= new
    if len(chosen) + PAD_ID + 1 < size - 10:
        raise SlipstreamError(f"the text uses only {len(chosen)} of Whisper's pieces: give a smaller size or more text")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_model({piece: ids[piece] for piece in chosen}))


def spelled(text: bytes) -> str:
    """Bytes as Whisper's tokenizer writes them: those without a visible letter are moved to 256 and above."""
    return "".join(_LETTERS[byte] for byte in text)


def _letters() -> list[str]:
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(moved)) for byte in range(256)]


_LETTERS = _letters()
_BYTES = {letter: byte for byte, letter in enumerate(_LETTERS)}


def _text(token: str) -> str | None:
    """A token as a piece, or None if it is special or not whole characters."""
    if token.startswith("<|") or not all(letter in _BYTES for letter in token):
        return None
    try:
        text = bytes(_BYTES[letter] for letter in token).decode()
    except UnicodeDecodeError:
        return None
    # White space inside a piece, and SentencePiece's own mark for it, would be ambiguous.
    inner = text.removeprefix(" ")
    fits = text != "" and inner.isprintable() and not any(c.isspace() or c == _SPACE for c in inner)
    return text.replace(" ", _SPACE) if fits else None


def _merged_from(piece: str, ids: Mapping[str, int]) -> set[str]:
    """A piece, and all pieces on the way to it: of two neighbours, those whose merger has the lowest id go first."""
    parts, used = list(piece), set(piece) & set(ids)
    while len(parts) > 1:
        pairs = [(ids[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        used.add(parts[i])
    return used | ({piece} & set(ids))


def _model(ids: Mapping[str, int]) -> bytes:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at import

    proto: Any = ModelProto()
    trainer = proto.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = WORD_ID, 1, 2, PAD_ID
    trainer.vocab_size = len(ids) + PAD_ID + 1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = True
    piece = proto.SentencePiece
    for name in ("<unk>", "<s>", "</s>", "<pad>"):
        proto.pieces.add(piece=name, score=0.0, type=piece.UNKNOWN if name == "<unk>" else piece.CONTROL)
    for text in sorted(ids, key=lambda text: ids[text]):
        proto.pieces.add(piece=text, score=-float(ids[text] + 1), type=piece.NORMAL)
    model: bytes = proto.SerializeToString()
    return model
