"""A small Whisper decoder: its weights, its vocabulary, and what it computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from slipstream.checkpoints.whisper import WhisperDecoderWeights
from slipstream.data.whisper_vocabulary import whisper_tokenizer
from slipstream.model.config import TransformerConfig
from slipstream.model.names import whisper_decoder_shapes
from slipstream.model.text import Tokenizer

D, HEADS, LAYERS, FFN = 24, 3, 3, 40
PROMPT = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
LETTERS = {letter: i for i, letter in enumerate(["Ġ", *"abcdehlo"])}
VOCABULARY = LETTERS | {"Ġh": 9, "el": 10, "Ġhel": 11, "lo": 12, "Ġhello": 13}
VOCABULARY |= {token: 14 + i for i, token in enumerate(["<|endoftext|>", *PROMPT])}


def small_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer of some of Whisper's pieces."""
    path = folder / "tokenizer.model"
    whisper_tokenizer(VOCABULARY, ["hello abcde hello hel"], path, 18)
    return Tokenizer(path)


def decoder(
    layers: int = LAYERS, vocabulary: dict[str, int] = VOCABULARY, dim: int = D, heads: int = HEADS
) -> WhisperDecoderWeights:
    shape = TransformerConfig(
        dim=dim, num_heads=heads, num_layers=layers, ffn_dim=FFN, context=1, max_period=10_000.0, norm="layer_norm",
        gated=False, positions="none",
    )  # fmt: skip
    shapes = whisper_decoder_shapes(shape, 30) | {"embedding": (len(vocabulary), dim)}
    shapes |= {"out_norm.weight": (dim,), "out_norm.bias": (dim,)}
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    return WhisperDecoderWeights(layers, heads, tensors)


def whispers(weights: WhisperDecoderWeights, ids: list[int], audio_D: torch.Tensor) -> torch.Tensor:
    """What Whisper's decoder computes for tokens, over audio of one vector: scores `[T, V]`."""
    w = {name: torch.from_numpy(array) for name, array in weights.tensors.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (D,), w[name + ".weight"], w[name + ".bias"])

    x = w["embedding"][ids] + w["positions"][: len(ids)]
    for i in range(weights.num_layers):
        at = f"layers.{i}."
        h = normed(at + "norm1", x)
        q, k, v = (linear(f"{at}attn.{part}_proj", h).view(-1, HEADS, D // HEADS).transpose(0, 1) for part in "qkv")
        y = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0].transpose(0, 1).flatten(1)
        x = x + linear(at + "attn.out_proj", y)
        x = x + linear(at + "cross.out_proj", linear(at + "cross.v_proj", audio_D))
        x = x + linear(at + "ffn.linear_out", F.gelu(linear(at + "ffn.linear_in", normed(at + "norm3", x))))
    return normed("out_norm", x) @ w["embedding"].T


def write_checkpoint(weights: WhisperDecoderWeights, vocabulary: dict[str, int], folder: Path) -> None:
    """Write a decoder as Hugging Face's files, with an encoder of one layer."""
    names = {"norm1": "self_attn_layer_norm", "norm2": "encoder_attn_layer_norm", "norm3": "final_layer_norm"}
    names |= {"attn": "self_attn", "cross": "encoder_attn", "ffn.linear_in": "fc1", "ffn.linear_out": "fc2"}
    hugging_face: dict[str, np.ndarray] = {}
    for name, array in weights.tensors.items():
        for ours, theirs in names.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        name = name.replace("out_norm", "layer_norm")
        name = {"embedding": "embed_tokens.weight", "positions": "embed_positions.weight"}.get(name, name)
        hugging_face[f"model.decoder.{name}"] = array
    hugging_face |= {"model.encoder.conv1.weight": np.zeros((D, 20, 3), np.float32)}
    hugging_face |= {"model.encoder.layers.0.fc1.weight": np.zeros((FFN, D), np.float32)}
    save_file(hugging_face, folder / "model.safetensors")
    heads = {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS}
    (folder / "config.json").write_text(json.dumps(heads))
    special = [{"content": token, "id": i} for token, i in vocabulary.items() if token.startswith("<|")]
    plain = {token: i for token, i in vocabulary.items() if not token.startswith("<|")}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": plain}, "added_tokens": special}))
