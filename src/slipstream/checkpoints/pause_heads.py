"""How many pause heads an LM has: configurations of published models can leave it out."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from slipstream.checkpoints.tensors import read_tensors
from slipstream.model.config import LMConfig

logger = logging.getLogger(__name__)


def with_pause_heads_of(config: LMConfig, path: Path, *, stated: bool) -> LMConfig:
    """Match the number of pause heads in `config` to the LM file at `path`.

    Kyutai publish stt-1b-en_fr twice: `kyutai/stt-1b-en_fr` has no pause heads (131 tensors) and
    `kyutai/stt-1b-en_fr-candle` has four (135 tensors). A configuration can leave the number out.

    Args:
        config: The LM that the configuration describes.
        path: The LM's safetensors file. Other files are not opened.
        stated: Whether the configuration gives a number of heads. If so, surplus heads in the file are ignored.

    Returns:
        `config`, with as many heads as the file has if none were stated or the file has fewer.

    Raises:
        CheckpointError: The file cannot be read.
    """
    if path.suffix != ".safetensors" or (stated and not config.pause_heads):
        return config
    heads = [tensor for name, tensor in read_tensors(path).items() if re.fullmatch(r"extra_heads\.\d+\.weight", name)]
    if stated and len(heads) >= config.pause_heads:
        return config
    if len(heads) < config.pause_heads:
        logger.warning(
            "%s has %d pause heads, its configuration has %d; without pause heads, turns end by loudness",
            path,
            len(heads),
            config.pause_heads,
        )
    classes = heads[0].shape[0] if heads else config.pause_classes
    return config.model_copy(update={"pause_heads": len(heads), "pause_classes": classes})
