"""Kyutai's PyTorch layout, which their Rust server reads too: the `moshi` package's names.

Kyutai publish one spelling of the attention's projections (`in_proj_weight`), their package's modules have another
(`in_projs.0.weight`): both are read, the published one is written, which every runtime of theirs understands.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from slipstream.checkpoints.eight_bit import unpacked
from slipstream.checkpoints.mimi import codebook_flags, numbered, whisper_entries
from slipstream.checkpoints.tables import Entries, Same, Stacked, Table, make_rules
from slipstream.checkpoints.tensors import read_tensors
from slipstream.model.config import CodecConfig, LMConfig
from slipstream.model.names import codec_shapes, lm_shapes

logger = logging.getLogger(__name__)

_ALIASES = (
    (r"self_attn\.in_proj(s\.0)?\.weight$", "self_attn.in_proj_weight"),
    (r"self_attn\.out_projs\.0\.weight$", "self_attn.out_proj.weight"),
    # Codebooks of older checkpoints.
    (r"_codebook\.inited$", "_codebook._initialized"),
    (r"_codebook\.cluster_size$", "_codebook.cluster_usage"),
    (r"_codebook\.embed(ding)?_(avg|sum)$", "_codebook.embedding_sum"),
)
_SURPLUS = r"(emb|extra_heads)\.\d+\.weight$"


def lm_table(config: LMConfig) -> Table:
    """The LM's tensors as the `moshi` package and the Rust server name them."""
    layer = "transformer.layers.{i}."
    conditioner = "condition_provider.conditioners.{name}."
    entries: Entries = {
        "text_emb.weight": Same("text_emb.weight"),
        "audio_emb.weight": Stacked("emb.{k}.weight", config.num_codebooks),
        "conditioners.{name}.embed.weight": Same(conditioner + "embed.weight"),
        "conditioners.{name}.output_proj.weight": Same(conditioner + "output_proj.weight"),
        "conditioners.{name}.learnt_padding": Same(conditioner + "learnt_padding", lead=2),
        "transformer.layers.{i}.norm1.weight": Same(layer + "norm1.alpha", lead=2),
        "transformer.layers.{i}.attn.in_proj.weight": Same(layer + "self_attn.in_proj_weight"),
        "transformer.layers.{i}.attn.out_proj.weight": Same(layer + "self_attn.out_proj.weight"),
        "transformer.layers.{i}.norm2.weight": Same(layer + "norm2.alpha", lead=2),
        "transformer.layers.{i}.ffn.linear_in.weight": Same(layer + "gating.linear_in.weight"),
        "transformer.layers.{i}.ffn.linear_out.weight": Same(layer + "gating.linear_out.weight"),
        "out_norm.weight": Same("out_norm.alpha", lead=2),
        "text_linear.weight": Same("text_linear.weight"),
        "pause_heads.weight": Stacked("extra_heads.{k}.weight", config.pause_heads),
    }
    # `depformer_in` is there in models that were trained to speak too; nothing reads it.
    rules = make_rules(lm_shapes(config), entries)
    return Table(rules, aliases=_ALIASES, skipped=r"depformer_in\.", surplus=_SURPLUS, decode=unpacked)


def codec_table(config: CodecConfig) -> Table:
    """Mimi's tensors in the one file that all of Kyutai's repositories hold, whatever the LM's layout is."""
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
    return Table(rules, constants=codebook_flags(rules, "_initialized"), aliases=_ALIASES, decode=unpacked)


def with_pause_heads_of(config: LMConfig, path: Path, *, stated: bool) -> LMConfig:
    """Match the number of pause heads in `config` to the LM file at `path`.

    Kyutai publish stt-1b-en_fr twice: `kyutai/stt-1b-en_fr` has no pause heads (131 tensors) and
    `kyutai/stt-1b-en_fr-candle` has four (135 tensors). A configuration need not say which.

    Args:
        config: The LM that the configuration describes.
        path: The LM's safetensors file. Other files are not opened.
        stated: Whether the configuration gives a number of heads. If so, surplus heads in the file are left alone.

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
            "%s has %d pause heads, its configuration says %d; turns without pause heads end by loudness",
            path,
            len(heads),
            config.pause_heads,
        )
    classes = heads[0].shape[0] if heads else config.pause_classes
    return config.model_copy(update={"pause_heads": len(heads), "pause_classes": classes})
