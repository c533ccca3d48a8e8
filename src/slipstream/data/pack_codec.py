"""Which codec made the tokens of a pack, and whether a model can be trained on them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import torch

from slipstream.data.packs import Pack
from slipstream.errors import ConfigError
from slipstream.nn.mimi import Mimi

_IRRELEVANT = re.compile(r"decoder|upsample|.*codebooks\.[1-9]")
"""Weights that are not in the fingerprint. A codec with more codebooks writes the same tokens for the first ones."""


def codec_fingerprint(codec: Mimi) -> str:
    """Return a hash of the weights that tokens depend on, in the precision of bfloat16: 16 hexadecimal digits.

    It is the same for each layout and precision of a checkpoint, and for any number of codebooks.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.state_dict().items()):
        if not _IRRELEVANT.match(name):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy())
    return digest.hexdigest()[:16]


def check_tokens(packs: Iterable[Pack], codec: Mimi, model: str, vocabulary: int) -> None:
    """Check that the packs hold tokens of a codec. Packs of mel frames and samples are not checked.

    Args:
        packs: The packs of a run. One that does not name its codec is read, and the range of its tokens checked.
        codec: The codec of the model that is trained.
        model: The name or folder of a model with this codec.
        vocabulary: The model's `audio_vocab`.

    Raises:
        ConfigError: A pack was made with another codec, or has a token that is not in the vocabulary.
    """
    fingerprint = codec_fingerprint(codec)
    for pack in packs:
        if pack.kind.kind != "tokens":
            continue
        repack = f"pack its recordings again with `slipstream data pack MANIFEST --model {model} --out {pack.folder}`"
        if pack.codec is not None and pack.codec.fingerprint != fingerprint:
            raise ConfigError(
                f"{pack.folder} was made with the codec of {pack.codec.model} (fingerprint {pack.codec.fingerprint}), "
                f"the codec of {model} is another (fingerprint {fingerprint}): {repack}"
            )
        if pack.codec is not None and codec.config.codebook_size <= vocabulary:
            continue
        problem = f"the model's audio_vocab is {vocabulary}, so tokens are 0 to {vocabulary - 1}: {repack}"
        if not all(0 <= token < vocabulary for token in pack.kind.silence):
            raise ConfigError(f"{pack.folder}: silence has the tokens {pack.kind.silence}; {problem}")
        for clip in pack.clips:
            codes = pack.rows(clip)
            if np.any(wrong := (codes < 0) | (codes >= vocabulary)):
                row, codebook = np.argwhere(wrong)[0]
                raise ConfigError(
                    f"{pack.folder}: row {clip.start + row} ({clip.text!r:.60}) has the token {codes[row, codebook]} "
                    f"in codebook {codebook}; {problem}"
                )
