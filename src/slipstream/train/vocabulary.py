"""Grow a model's vocabulary: rows for the pieces that a tokenizer has beyond those of the model.

Shapes: V pieces of the old vocabulary, N new ones, D width. A text embedding has one row more, for the initial token.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at import

from slipstream.errors import ConfigError
from slipstream.model.text import Tokenizer

Array = npt.NDArray[Any]
EMBEDDING = "text_emb.weight"
OUTPUTS = ("text_linear.weight", "token_head.weight", "token_head.bias")


class Growth:
    """The pieces that `new` adds to `old`, and what each of them replaces.

    Attributes:
        old: V. new: V + N.
        replaced: for each new piece the ids of the old vocabulary that write its text.

    Raises `ConfigError` when `new` changes the meaning of an id of `old`, or has fewer pieces.

    Example:
        >>> growth = Growth(Path("tiny/tokenizer.model"), Path("data/tiny-de.model"))  # doctest: +SKIP
        >>> growth.new - growth.old  # doctest: +SKIP
        200
    """

    def __init__(self, old: Path, new: Path) -> None:
        before, after = Tokenizer(old), Tokenizer(new)
        self.old, self.new = before.vocab_size, after.vocab_size
        if not extends(after, before):
            raise ConfigError(
                f"{new} does not begin with the {self.old} pieces of {old}: "
                "`slipstream train tokenizer --extend` adds pieces to a vocabulary and keeps its ids"
            )
        writer, pieces = _Writer(old, before), sentencepiece.SentencePieceProcessor(model_file=str(new))
        texts = [i for i in range(self.old) if before.segments(i) is not None]
        self.replaced: Sequence[Sequence[int]] = [
            writer.ids(pieces.id_to_piece(i)) or texts for i in range(self.old, self.new)
        ]

    def grown(self, tensors: Mapping[str, Array], prefix: str = "") -> dict[str, Array]:
        """Return the tensors with rows for the new pieces; those that have no row for each piece stay as they are.

        A new row is the mean of the rows of the pieces that it replaces. `prefix`: of the names of an LM's tensors.
        """
        grown = dict(tensors)
        for name in (prefix + EMBEDDING, prefix + OUTPUTS[0], *OUTPUTS[1:]):
            if name in tensors and len(tensors[name]) - (name == prefix + EMBEDDING) == self.old:
                rows = np.asarray(tensors[name])
                new = np.stack([rows[list(ids)].astype(np.float32).mean(axis=0) for ids in self.replaced])
                grown[name] = np.concatenate([rows[: self.old], new.astype(rows.dtype), rows[self.old :]])
        return grown


def extends(after: Tokenizer, before: Tokenizer) -> bool:
    """Whether `after` has more pieces than `before`, after the same ones."""
    ids = range(before.vocab_size)
    return after.vocab_size > len(ids) and all(after.segments(i) == before.segments(i) for i in ids)


class _Writer:
    """Writes single pieces with a vocabulary: no word starts before them unless they begin with its mark."""

    def __init__(self, path: Path, vocabulary: Tokenizer) -> None:
        proto = ModelProto()
        proto.ParseFromString(path.read_bytes())
        proto.normalizer_spec.add_dummy_prefix = False
        proto.normalizer_spec.remove_extra_whitespaces = False
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self._vocabulary = vocabulary

    def ids(self, piece: str) -> list[int]:
        """The ids that write a piece; for a letter that has none, those of the letter without its marks."""
        found: list[int] = []
        for token in self._encode(piece):
            found += [token] if isinstance(token, int) else self._known(self._encode(_without_marks(token)))
        return found

    def _encode(self, piece: str) -> list[int | str]:
        """Ids, and the characters that have none."""
        written = self._processor.encode_as_pieces(piece.replace("\u2581", " "))
        ids = [(text, self._processor.piece_to_id(text)) for text in written]
        return [text if self._vocabulary.segments(token) is None else token for text, token in ids]

    @staticmethod
    def _known(tokens: list[int | str]) -> list[int]:
        return [token for token in tokens if isinstance(token, int)]


def _without_marks(text: str) -> str:
    """`ü` as `u`, `ß` as `ss`."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
