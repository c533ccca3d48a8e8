"""Which codec made the tokens of a pack, and whether a model can be trained on them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import torch

from slipstream.data.packs import Pack
from slipstream.errors import ConfigError
from slipstream.model.names import is_decoder
from slipstream.nn.mimi import Mimi

_LATER_CODEBOOK = re.compile(r".*codebooks\.[1-9]")
"""Not in the fingerprint: a codec with more codebooks writes the same tokens for the first ones."""


def codec_fingerprint(codec: Mimi, *, projections: bool = False) -> str:
    """Return a hash of the weights that tokens depend on, in the precision of bfloat16: 16 hexadecimal digits.

    It is the same for each layout and precision of a checkpoint, for any number of codebooks, and with any decoder.
    `projections`: include the quantiser's output projections, as older packs have it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.state_dict().items()):
        included = not is_decoder(name) or (projections and name.startswith("quantizer."))
        if included and not _LATER_CODEBOOK.match(name):
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
    fingerprints = {fingerprint, codec_fingerprint(codec, projections=True)}
    for pack in packs:
        if pack.kind.kind != "tokens":
            continue
        repack = f"pack its recordings again with `slipstream data pack MANIFEST --model {model} --out {pack.folder}`"
        if pack.codec is not None and pack.codec.fingerprint not in fingerprints:
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
