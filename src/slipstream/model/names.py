"""Canonical tensor names and shapes, computed from the configuration.

Every layout is a two-way table to these names. The state dicts of the PyTorch modules have the same names.
Shapes: V text vocabulary, D width, K codebooks, F feed-forward width, H pause heads.
"""

from __future__ import annotations

from slipstream.model.config import CodecConfig, LMConfig, SEANetConfig, TransformerConfig, WhisperConfig

Shapes = dict[str, tuple[int, ...]]


def lm_shapes(config: LMConfig) -> Shapes:
    """Names and shapes of the LM's tensors, in the order of the forward pass."""
    D = config.transformer.dim
    shapes: Shapes = _text_embedding("text_emb.", config, D, None)
    shapes["audio_emb.weight"] = (config.num_codebooks, config.audio_vocab + 1, D)
    for conditioner in config.conditioners:
        prefix = f"conditioners.{conditioner.name}."
        if conditioner.kind == "lut":
            shapes[prefix + "embed.weight"] = (conditioner.num_bins + 1, conditioner.dim)
        shapes[prefix + "output_proj.weight"] = (D, conditioner.dim)
        shapes[prefix + "learnt_padding"] = (D,)
    if config.whisper:
        decoder = whisper_decoder_shapes(config.transformer, config.whisper.num_positions)
        shapes |= {f"transformer.{name}": shape for name, shape in decoder.items()}
        if (vectors := config.whisper.vectors) > 1:
            shapes |= {"transformer.spread.weight": (vectors * D, D), "transformer.spread.bias": (vectors * D,)}
        for i in range(config.transformer.num_layers):
            heads, head_dim = config.transformer.num_heads, config.transformer.head_dim
            shapes[f"transformer.layers.{i}.age"] = (heads, config.whisper.audio_context)
            shapes[f"transformer.layers.{i}.prefix"] = (2, heads, config.whisper.prefix, head_dim)
            if config.languages:
                languages = len(config.languages)
                shapes[f"transformer.layers.{i}.languages"] = (languages, 2, heads, config.whisper.prefix, head_dim)
    else:
        shapes |= _transformer("transformer.", config.transformer)
    shapes |= _norm("out_norm.", config.transformer.norm, D)
    shapes["text_linear.weight"] = (config.text_outputs or config.text_vocab, D)
    if config.pause_heads:
        shapes["pause_heads.weight"] = (config.pause_heads, config.pause_classes, D)
    return shapes | depth_shapes(config)


def depth_shapes(config: LMConfig) -> Shapes:
    """Names and shapes of the depth Transformer's tensors: W sets of weights, K codebooks; none without one."""
    if config.depth is None:
        return {}
    depth, transformer = config.depth, config.depth.transformer
    W, K, D, F = depth.num_weights, depth.num_codebooks, transformer.dim, transformer.ffn_dim
    shapes: Shapes = {"depth.in_proj.weight": (W, D, config.transformer.dim)}
    shapes |= _text_embedding("depth.text_emb.", config, D, depth.low_rank)
    shapes["depth.audio_emb.weight"] = (K - 1, config.audio_vocab + 1, depth.low_rank or D)
    if depth.low_rank:
        shapes["depth.audio_emb.low_rank"] = (K - 1, D, depth.low_rank)
    for i in range(transformer.num_layers):
        layer = f"depth.layers.{i}."
        shapes |= _norm(layer + "norm1.", transformer.norm, D)
        shapes[layer + "attn.in_proj.weight"] = (W, 3 * D, D)
        shapes[layer + "attn.out_proj.weight"] = (W, D, D)
        shapes |= _norm(layer + "norm2.", transformer.norm, D)
        shapes[layer + "ffn.linear_in.weight"] = (W, 2 * F, D)
        shapes[layer + "ffn.linear_out.weight"] = (W, D, F)
    if depth.output_norm:
        shapes |= {name: (K, *shape) for name, shape in _norm("depth.out_norms.", depth.output_norm, D).items()}
    shapes["depth.linears.weight"] = (K, config.audio_vocab, D)
    return shapes


def is_decoder(name: str) -> bool:
    """Whether a codec's tensor is used by decoding alone."""
    return name.startswith(("decoder.", "decoder_transformer.", "upsample.")) or name.endswith("output_proj.weight")


def codec_shapes(config: CodecConfig) -> Shapes:
    """Names and shapes of the codec's tensors, in the order of the forward pass: encode, then decode."""
    shapes: Shapes = {}
    if config.whisper:
        shapes |= whisper_shapes(config.whisper)
    else:
        _seanet_encoder(shapes, config)
        shapes |= _transformer("encoder_transformer.", config.transformer)
    if config.stride > 1:
        shapes["downsample.weight"] = (config.dim, config.dim, 2 * config.stride)
    for part, count in (
        ("semantic", config.num_semantic),
        ("acoustic", config.num_codebooks - config.num_semantic),
    ):
        prefix = f"quantizer.{part}."
        shapes[prefix + "input_proj.weight"] = (config.codebook_dim, config.dim)
        for k in range(count):
            shapes[f"{prefix}codebooks.{k}.embedding_sum"] = (config.codebook_size, config.codebook_dim)
            shapes[f"{prefix}codebooks.{k}.cluster_usage"] = (config.codebook_size,)
        shapes[prefix + "output_proj.weight"] = (config.output_dim, config.codebook_dim)
    if config.has_decoder:
        if config.decoder_stride > 1:
            shapes["upsample.weight"] = (config.output_dim, 1, 2 * config.decoder_stride)
        shapes |= _transformer("decoder_transformer.", config.decoder_shape.transformer)
        _seanet_decoder(shapes, config.decoder_shape)
    return shapes


def whisper_shapes(config: WhisperConfig) -> Shapes:
    """Names and shapes of the tensors of a codec's Whisper encoder."""
    D = config.dim
    shapes: Shapes = {}
    _conv(shapes, "encoder.conv1", D, config.n_mels, 3)
    _conv(shapes, "encoder.conv2", D, D, 3)
    for i in range(config.num_layers):
        layer = f"encoder.layers.{i}."
        shapes |= _whisper_attention(layer + "attn.", D) | _whisper_feed_forward(layer + "ffn.", D, config.ffn_dim)
        for norm in ("norm1.", "norm2."):
            shapes |= _norm(layer + norm, "layer_norm", D)
    return shapes | _norm("encoder.norm.", "layer_norm", D)


def whisper_decoder_shapes(config: TransformerConfig, num_positions: int) -> Shapes:
    """Names and shapes of what Whisper's text decoder has, without its embeddings and last norm."""
    D = config.dim
    shapes: Shapes = {"positions": (num_positions, D)}
    for i in range(config.num_layers):
        layer = f"layers.{i}."
        shapes |= _whisper_attention(layer + "attn.", D) | _whisper_attention(layer + "cross.", D)
        shapes |= _whisper_feed_forward(layer + "ffn.", D, config.ffn_dim)
        for norm in ("norm1.", "norm2.", "norm3."):
            shapes |= _norm(layer + norm, "layer_norm", D)
    return shapes


def _whisper_attention(prefix: str, D: int) -> Shapes:
    """Whisper's attention: its keys have no bias."""
    shapes: Shapes = {}
    for part in ("q", "k", "v", "out"):
        shapes[f"{prefix}{part}_proj.weight"] = (D, D)
        if part != "k":
            shapes[f"{prefix}{part}_proj.bias"] = (D,)
    return shapes


def _whisper_feed_forward(prefix: str, D: int, F: int) -> Shapes:
    inner: Shapes = {prefix + "linear_in.weight": (F, D), prefix + "linear_in.bias": (F,)}
    return inner | {prefix + "linear_out.weight": (D, F), prefix + "linear_out.bias": (D,)}


def _transformer(prefix: str, config: TransformerConfig) -> Shapes:
    D, F = config.dim, config.ffn_dim
    shapes: Shapes = {}
    for i in range(config.num_layers):
        layer = f"{prefix}layers.{i}."
        shapes |= _norm(layer + "norm1.", config.norm, D)
        shapes[layer + "attn.in_proj.weight"] = (3 * D, D)
        shapes[layer + "attn.out_proj.weight"] = (D, D)
        if config.cross_attention:
            shapes |= _norm(layer + "cross.norm.", "layer_norm", D)
            shapes[layer + "cross.in_proj.weight"] = (3 * D, D)
            shapes[layer + "cross.out_proj.weight"] = (D, D)
        if config.layer_scale:
            shapes[layer + "scale1"] = (D,)
        shapes |= _norm(layer + "norm2.", config.norm, D)
        shapes[layer + "ffn.linear_in.weight"] = (2 * F if config.gated else F, D)
        shapes[layer + "ffn.linear_out.weight"] = (D, F)
        if config.layer_scale:
            shapes[layer + "scale2"] = (D,)
    return shapes


def _norm(prefix: str, norm: str, dim: int) -> Shapes:
    shapes: Shapes = {prefix + "weight": (dim,)}
    if norm == "layer_norm":
        shapes[prefix + "bias"] = (dim,)
    return shapes


def _text_embedding(prefix: str, config: LMConfig, dim: int, low_rank: int | None) -> Shapes:
    """A table of text tokens, and projections of its width: for a pair of tokens there are two, `out1` and `out2`."""
    width = low_rank or dim
    shapes: Shapes = {prefix + "weight": (config.text_vocab + 1, width)}
    if low_rank:
        shapes[prefix + "low_rank.weight"] = (dim, low_rank)
    if config.demux_text:
        shapes |= {prefix + "out1.weight": (dim, width), prefix + "out2.weight": (dim, width)}
    return shapes


def _conv(shapes: Shapes, name: str, out_channels: int, in_channels: int, kernel: int) -> None:
    shapes[name + ".weight"] = (out_channels, in_channels, kernel)
    shapes[name + ".bias"] = (out_channels,)


def _residuals(shapes: Shapes, stage: str, width: int, config: SEANetConfig) -> None:
    hidden = width // config.compress
    for j in range(config.num_residual_layers):
        _conv(shapes, f"{stage}.residuals.{j}.conv1", hidden, width, config.residual_kernel_size)
        _conv(shapes, f"{stage}.residuals.{j}.conv2", width, hidden, 1)


def _seanet_encoder(shapes: Shapes, config: CodecConfig) -> None:
    width = config.num_filters
    _conv(shapes, "encoder.conv_in", width, config.mel.n_mels if config.mel else 1, config.kernel_size)
    for i, ratio in enumerate(reversed(config.ratios)):
        _residuals(shapes, f"encoder.stages.{i}", width, config)
        _conv(shapes, f"encoder.stages.{i}.resample", 2 * width, width, 2 * ratio)
        width *= 2
    _conv(shapes, "encoder.conv_out", config.dim, width, config.last_kernel_size)


def _seanet_decoder(shapes: Shapes, config: SEANetConfig) -> None:
    width = config.num_filters * 2 ** len(config.ratios)
    _conv(shapes, "decoder.conv_in", width, config.transformer.dim, config.kernel_size)
    for i, ratio in enumerate(config.ratios):
        # A transposed convolution keeps its input channels first.
        shapes[f"decoder.stages.{i}.resample.weight"] = (width, width // 2, 2 * ratio)
        shapes[f"decoder.stages.{i}.resample.bias"] = (width // 2,)
        width //= 2
        _residuals(shapes, f"decoder.stages.{i}", width, config)
    _conv(shapes, "decoder.conv_out", 1, width, config.last_kernel_size)
