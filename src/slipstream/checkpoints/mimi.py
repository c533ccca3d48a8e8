"""Mimi, the codec: Kyutai's configuration of it, and its tensors as all of their repositories keep them.

Other formats share the numbering of SEANet's layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from slipstream.checkpoints.eight_bit import kept
from slipstream.checkpoints.tables import Entries, Rule, Same, Table, make_rules
from slipstream.checkpoints.tensors import Array
from slipstream.model.config import CodecConfig
from slipstream.model.names import codec_shapes, whisper_shapes
from slipstream.schema import Count, PositiveNumber, Section, check_fixed, check_keys, parse

# ---------------------------------------------------------------------------------------------------- configuration


class _Seanet(Section):
    num_filters: Count | None = Field(None, alias="n_filters")
    num_residual_layers: Count | None = Field(None, alias="n_residual_layers")
    compress: Count | None = None
    dilation_base: Count | None = None
    kernel_size: Count | None = None
    residual_kernel_size: Count | None = None
    last_kernel_size: Count | None = None
    ratios: list[int] | None = None
    dimension: Count | None = None
    channels: Literal[1] = 1
    causal: Literal[True] = True
    activation: Literal["ELU"] = "ELU"
    disable_norm_outer_blocks: Literal[0] = 0
    norm: Literal["none"] = "none"
    pad_mode: Literal["constant"] = "constant"
    true_skip: Literal[True] = True


class _Quantizer(Section):
    codebook_dim: Count = Field(alias="dimension")
    num_codebooks: Count = Field(alias="n_q")
    num_semantic: Count | None = Field(None, alias="n_q_semantic")
    codebook_size: Count = Field(alias="bins")
    input_dimension: Count | None = None
    output_dimension: Count | None = None


class _Transformer(Section):
    dim: Count = Field(alias="d_model")
    num_heads: Count
    num_layers: Count
    ffn_dim: Count = Field(alias="dim_feedforward")
    context: Count
    max_period: PositiveNumber
    layer_scale: PositiveNumber | None = None
    input_dimension: Count | None = None
    output_dimensions: list[int] | None = None
    causal: Literal[True] = True
    conv_layout: Literal[True] = True
    gating: Literal["none"] = "none"
    norm: Literal["layer_norm"] = "layer_norm"
    positional_embedding: Literal["rope"] = "rope"


class _Mimi(Section):
    """Kyutai's configuration of a codec."""

    sample_rate: Count | None = None
    channels: Literal[1] = 1
    frame_rate: PositiveNumber | None = None
    seanet: _Seanet
    quantizer: _Quantizer
    transformer: _Transformer


_NAME = "the codec's config"
_SIZES = ("dim", "num_heads", "num_layers", "ffn_dim", "context", "max_period")
# Fields of `CodecConfig` that a Whisper encoder does not use.
_SEANET_ONLY = {*(_Seanet.model_fields.keys() & CodecConfig.model_fields.keys()), "transformer", "mel"}


def parse_codec(raw: Mapping[str, Any]) -> CodecConfig:
    """Read a codec's own file: the fields of `CodecConfig`, or Kyutai's `seanet`, `quantizer` and `transformer`.

    Raises `ConfigError` that describes every problem.
    """
    if "seanet" not in raw:
        check_keys(raw, CodecConfig.model_fields.keys(), _NAME)
        return parse(CodecConfig, raw, _NAME)
    mimi = parse(_Mimi, raw, _NAME)
    width = mimi.transformer.dim
    why = ", the width d_model of the Transformers"
    check_fixed(mimi.seanet, {"dimension": width}, "seanet", why)
    check_fixed(mimi.quantizer, {"input_dimension": width, "output_dimension": width}, "quantizer", why)
    check_fixed(mimi.transformer, {"input_dimension": width}, "transformer", why)
    ours = set(CodecConfig.model_fields)
    transformer = {
        **mimi.transformer.model_dump(include=set(_SIZES)),
        "norm": "layer_norm",
        "gated": False,
        "layer_scale": mimi.transformer.layer_scale is not None,
    }
    fields = {
        **mimi.model_dump(include={"sample_rate", "frame_rate"}, exclude_none=True),
        **mimi.seanet.model_dump(include=ours, exclude_none=True),
        **mimi.quantizer.model_dump(include=ours, exclude_none=True),
        "transformer": transformer,
    }
    return parse(CodecConfig, fields, _NAME)


def dump_codec(config: CodecConfig) -> dict[str, Any]:
    """The inverse of `parse_codec`: Kyutai's form if it can describe the codec, else the fields of `CodecConfig`."""
    if not config.reads_samples or config.transformer.norm != "layer_norm" or config.transformer.gated:
        left_out = (_SEANET_ONLY if config.whisper else set()) | (set() if config.decoder else {"decoder"})
        dumped: dict[str, Any] = json.loads(config.model_dump_json(exclude=left_out))
        return dumped
    width, transformer = config.dim, config.transformer
    seanet = _Seanet.model_construct(**_shared(_Seanet, config), dimension=width)
    quantizer = _Quantizer.model_construct(**_shared(_Quantizer, config), input_dimension=width, output_dimension=width)
    layers = _Transformer.model_construct(
        **{name: getattr(transformer, name) for name in _SIZES},
        layer_scale=0.01 if transformer.layer_scale else None,
        input_dimension=width,
        output_dimensions=[width],
    )
    return {
        "sample_rate": config.sample_rate,
        "channels": 1,
        "frame_rate": config.frame_rate,
        "seanet": {**seanet.model_dump(by_alias=True), "ratios": list(config.ratios)},
        "quantizer": quantizer.model_dump(by_alias=True),
        "transformer": layers.model_dump(by_alias=True),
    }


def _shared(section: type[Section], config: CodecConfig) -> dict[str, Any]:
    names = section.model_fields.keys() & CodecConfig.model_fields.keys() - {"ratios"}
    return {name: getattr(config, name) for name in names}


# --------------------------------------------------------------------------------------------------------- tensors

# Kyutai publish one spelling of the attention's projections (`in_proj_weight`), the modules of their package have
# another (`in_projs.0.weight`). Both are read; the published one, which all of their runtimes read, is written.
ATTENTION_ALIASES = (
    (r"self_attn\.in_proj(s\.0)?\.weight$", "self_attn.in_proj_weight"),
    (r"self_attn\.out_projs\.0\.weight$", "self_attn.out_proj.weight"),
)
_CODEBOOK_ALIASES = (  # of older checkpoints
    (r"_codebook\.inited$", "_codebook._initialized"),
    (r"_codebook\.cluster_size$", "_codebook.cluster_usage"),
    (r"_codebook\.embed(ding)?_(avg|sum)$", "_codebook.embedding_sum"),
)


def codec_table(config: CodecConfig) -> Table:
    """Mimi's tensors as Kyutai's repositories keep them, next to an LM in the PyTorch or in the MLX format."""
    entries: Entries = {
        **whisper_entries(config),
        "downsample.weight": Same("downsample.conv.conv.conv.weight"),
        "upsample.weight": Same("upsample.convtr.convtr.convtr.weight"),
        "decoder.{n}.resample.{leaf}": Same("decoder.model.{n}.convtr.convtr.{leaf}"),
    }
    for side in ("encoder", "decoder"):
        layer = f"{side}_transformer.transformer.layers.{{i}}."
        entries |= {
            f"{side}.{{n}}.{{leaf}}": Same(f"{side}.model.{{n}}.conv.conv.{{leaf}}"),
            f"{side}.{{n}}.block.{{b}}.{{leaf}}": Same(f"{side}.model.{{n}}.block.{{b}}.conv.conv.{{leaf}}"),
            f"{side}_transformer.layers.{{i}}.{{norm}}.{{leaf}}": Same(layer + "{norm}.{leaf}"),
            f"{side}_transformer.layers.{{i}}.attn.in_proj.weight": Same(layer + "self_attn.in_proj_weight"),
            f"{side}_transformer.layers.{{i}}.attn.out_proj.weight": Same(layer + "self_attn.out_proj.weight"),
            f"{side}_transformer.layers.{{i}}.ffn.linear_in.weight": Same(layer + "linear1.weight"),
            f"{side}_transformer.layers.{{i}}.ffn.linear_out.weight": Same(layer + "linear2.weight"),
            f"{side}_transformer.layers.{{i}}.scale{{j}}": Same(layer + "layer_scale_{j}.scale"),
        }
    for part, theirs in (("semantic", "rvq_first"), ("acoustic", "rvq_rest")):
        codebook = f"quantizer.{theirs}.vq.layers.{{k}}._codebook."
        entries |= {
            f"quantizer.{part}.codebooks.{{k}}.{{leaf}}": Same(codebook + "{leaf}"),
            f"quantizer.{part}.{{proj}}.weight": Same(f"quantizer.{theirs}.{{proj}}.weight", trail=1),
        }
    rules = make_rules(codec_shapes(config), entries, spell=lambda name: numbered(name, config))
    aliases, flags = ATTENTION_ALIASES + _CODEBOOK_ALIASES, codebook_flags(rules, "_initialized")
    return Table(rules, constants=flags, aliases=aliases, decode=kept)


def numbered(name: str, config: CodecConfig) -> str:
    """A canonical name of SEANet with its place in the published stack, where activations count too.

    `encoder.stages.0.residuals.0.conv1.weight` becomes `encoder.1.block.1.weight`, and
    `decoder.stages.0.resample.weight` becomes `decoder.2.resample.weight`. Names of other parts stay as they are.
    """
    match = _SEANET.fullmatch(name)
    if match is None:
        return name
    side, stage, residual, conv, end, leaf = match.group("side", "stage", "residual", "conv", "end", "leaf")
    shape = config if side == "encoder" else config.decoder_shape
    R = shape.num_residual_layers
    length = R + 2  # of a stage: residual blocks, an activation, a convolution that changes the rate
    if end:
        last = 1 + length * len(shape.ratios) + 1
        return f"{side}.{0 if end == 'conv_in' else last}.{leaf}"
    first = 1 + length * int(stage)
    if conv is None:
        resample = first + R + 1 if side == "encoder" else first + 1
        return f"{side}.{resample}.{leaf if side == 'encoder' else f'resample.{leaf}'}"
    block = first + int(residual) + (0 if side == "encoder" else 2)
    return f"{side}.{block}.block.{2 * int(conv) - 1}.{leaf}"


def whisper_entries(config: CodecConfig) -> Entries:
    """Entries for a Whisper encoder's tensors, which keep their canonical names: no such codec is published."""
    return {name: Same(name) for name in whisper_shapes(config.whisper)} if config.whisper else {}


def codebook_flags(rules: Sequence[Rule], flag: str) -> dict[str, Array]:
    """The flags that mark each codebook as initialised: 1 in every trained codec."""
    usages = [name for rule in rules for name in rule.theirs if name.endswith("cluster_usage")]
    return {name.replace("cluster_usage", flag): np.ones(1, np.float32) for name in usages}


_SEANET = re.compile(
    r"(?P<side>encoder|decoder)\."
    r"((?P<end>conv_in|conv_out)"
    r"|stages\.(?P<stage>\d+)\.(resample|residuals\.(?P<residual>\d+)\.conv(?P<conv>[12])))"
    r"\.(?P<leaf>weight|bias)"
)
