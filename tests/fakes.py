"""Stand-ins for tests: a tokenizer trained on made-up sentences, and Runners whose words follow from what they hear."""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path

import sentencepiece

from slipstream.text import Tokenizer

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells by the sea shore, and he doesn't mind",
    "l'été dernier, nous sommes allés à la plage près de Saint-Malo",
    "où êtes-vous né? je ne sais pas, répondit-elle; c'était à l'hôpital",
    "What a day! Numbers such as one, two, three and twenty-four are words too.",
    "Speech becomes text while you are speaking, word after word after word",
    "garçon, naïve, cœur, forêt, aiguë, ça va bien",
]


def tokenizer_proto(**options: object) -> bytes:
    """A SentencePiece model laid out as the published ones are: ids 0 to 3 special, pad 3, bytes as a fallback."""
    proto = io.BytesIO()
    settings: dict[str, object] = {
        "model_type": "unigram",
        "vocab_size": 400,
        "byte_fallback": True,
        "character_coverage": 0.98,
        "hard_vocab_limit": False,
        "normalization_rule_name": "identity",
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": 3,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4), model_writer=proto, **(settings | options)
    )
    return proto.getvalue()


@functools.cache
def tokenizer_path() -> Path:
    """The file of the tokenizer above, made once for a run of the tests."""
    path = Path(tempfile.mkdtemp(prefix="slipstream-tests-")) / "tokenizer.model"
    path.write_bytes(tokenizer_proto())
    return path


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_path())
