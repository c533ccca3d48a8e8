"""What the published files of Mimi have in common, whoever wrote them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from slipstream.checkpoints.tables import Entries, Rule, Same
from slipstream.checkpoints.tensors import Array
from slipstream.model.config import CodecConfig
from slipstream.model.names import whisper_shapes


def numbered(name: str, config: CodecConfig) -> str:
    """A canonical name of SEANet with its place in the published stack, where activations count too.

    `encoder.stages.0.residuals.0.conv1.weight` becomes `encoder.1.block.1.weight`, and
    `decoder.stages.0.resample.weight` becomes `decoder.2.resample.weight`. Names of other parts stay as they are.
    """
    match = _SEANET.fullmatch(name)
    if match is None:
        return name
    side, stage, residual, conv, end, leaf = match.group("side", "stage", "residual", "conv", "end", "leaf")
    R = config.num_residual_layers
    length = R + 2  # of a stage: residual blocks, an activation, a convolution that changes the rate
    if end:
        last = 1 + length * len(config.ratios) + 1
        return f"{side}.{0 if end == 'conv_in' else last}.{leaf}"
    first = 1 + length * int(stage)
    if conv is None:
        resample = first + R + 1 if side == "encoder" else first + 1
        return f"{side}.{resample}.{leaf if side == 'encoder' else f'resample.{leaf}'}"
    block = first + int(residual) + (0 if side == "encoder" else 2)
    return f"{side}.{block}.block.{2 * int(conv) - 1}.{leaf}"


def whisper_entries(config: CodecConfig) -> Entries:
    """Entries for a Whisper encoder's tensors, which keep their canonical names: nobody publishes such a codec."""
    return {name: Same(name) for name in whisper_shapes(config.whisper)} if config.whisper else {}


def codebook_flags(rules: Sequence[Rule], flag: str) -> dict[str, Array]:
    """The tensors by which each codebook says that it is initialised: true of every trained one."""
    usages = [name for rule in rules for name in rule.theirs if name.endswith("cluster_usage")]
    return {name.replace("cluster_usage", flag): np.ones(1, np.float32) for name in usages}


_SEANET = re.compile(
    r"(?P<side>encoder|decoder)\."
    r"((?P<end>conv_in|conv_out)"
    r"|stages\.(?P<stage>\d+)\.(resample|residuals\.(?P<residual>\d+)\.conv(?P<conv>[12])))"
    r"\.(?P<leaf>weight|bias)"
)
