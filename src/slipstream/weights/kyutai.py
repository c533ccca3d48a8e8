"""Kyutai's PyTorch layout, which their Rust server reads too: the `moshi` package's names.

Kyutai publish one spelling of the attention's projections (`in_proj_weight`), their package's modules have another
(`in_projs.0.weight`): both are read, the published one is written, which every runtime of theirs understands.
"""

from __future__ import annotations

from slipstream.config import CodecConfig, LMConfig
from slipstream.weights.mimi import codebook_flags, numbered
from slipstream.weights.names import codec_shapes, lm_shapes
from slipstream.weights.tables import Entries, Same, Stacked, Table, make_rules

_ALIASES = (
    (r"self_attn\.in_proj(s\.0)?\.weight$", "self_attn.in_proj_weight"),
    (r"self_attn\.out_projs\.0\.weight$", "self_attn.out_proj.weight"),
    # Codebooks of older checkpoints.
    (r"_codebook\.inited$", "_codebook._initialized"),
    (r"_codebook\.cluster_size$", "_codebook.cluster_usage"),
    (r"_codebook\.embed(ding)?_(avg|sum)$", "_codebook.embedding_sum"),
)


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
    return Table(make_rules(lm_shapes(config), entries), aliases=_ALIASES, skipped=r"depformer_in\.")


def codec_table(config: CodecConfig) -> Table:
    """Mimi's tensors in the one file that all of Kyutai's repositories hold, whatever the LM's layout is."""
    entries: Entries = {
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
    return Table(rules, constants=codebook_flags(rules, "_initialized"), aliases=_ALIASES)
