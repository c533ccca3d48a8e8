"""An LM that starts as the text decoder of a Whisper checkpoint.

Pieces of the LM's vocabulary take the embeddings of Whisper's tokens. The codec's latents start as means of a frame's
features; for a decoder that attends to several vectors per frame, as their principal components. The LM's audio input
starts as what the quantiser keeps of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.arrays import IntArray
from slipstream.checkpoints.sources import find_place
from slipstream.checkpoints.tensors import Array
from slipstream.checkpoints.whisper import WhisperDecoderWeights, read_whisper_decoder
from slipstream.data.whisper_vocabulary import read_whisper_vocabulary, spelled
from slipstream.errors import ConfigError
from slipstream.model.config import PAD_ID, WORD_ID, LMConfig
from slipstream.model.text import Tokenizer
from slipstream.nn.decoder import WhisperDecoder, WhisperDecoderLayer
from slipstream.nn.lm import LM
from slipstream.train.model import SpeechModel


def start_from(
    model: SpeechModel,
    name: str,
    tokenizer: Tokenizer,
    languages: Sequence[str],
    features: Callable[[], Tensor],
    mean: Tensor | None = None,
) -> None:
    """Start a model as the decoder of the checkpoint `name`, with the `tokenizer.json` next to it.

    Args:
        model: The codec and the LM.
        name: See `read_whisper`.
        tokenizer: The LM's.
        languages: Codes of those that the model will write; the prefix is the mean of their prompts, and what a stream
            in one of `LMConfig.languages` adds is the difference of its prompt.
        features: Computes what `start_spread` needs; called only for several vectors per frame.
        mean: The mean feature of Whisper's encoder, `[D]`, which a distilled encoder's features lack.
    """
    config = model.config
    vectors = config.lm.whisper.vectors if config.lm.whisper else 1
    if vectors not in (1, config.codec.stride):
        raise ConfigError(
            f"model.lm.whisper.vectors={vectors}: a run with model.decoder needs 1 vector per frame, or "
            f"{config.codec.stride}, the number of the encoder's features in a frame"
        )
    vocabulary = vocabulary_beside(name)
    age = config.delay_frames - 1 - config.codec.blank_frames
    decoder = read_whisper_decoder(name)
    start_model(model, decoder_start(config.lm, decoder, vocabulary, tokenizer, max(0, age)), mean)
    if vectors > 1:
        start_spread(model, features(), mean)
    all_NPD = embedded_prompts(decoder, prompts(vocabulary, languages, "model.decoder"))
    start_prefix(model.lm, all_NPD)
    if config.lm.languages:
        ids = prompts(vocabulary, config.lm.languages, "model.lm.whisper.languages", every=True)
        start_languages(model.lm, embedded_prompts(decoder, ids), all_NPD)


END_OF_TEXT = "<|endoftext|>"
_PROMPT = ("<|startoftranscript|>", "<|{language}|>", "<|transcribe|>", "<|notimestamps|>")
_AGE_FALL = 0.04
"""By how much each frame of distance from the usual age of a word lowers its score, before training."""
_NEW_AGE_FALL = 0.2
"""The same for each frame of distance from the ages that a model with another delay knows."""


def later_ages(weights: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
    """The weights of a model with a Whisper decoder, for a text delay that is `frames` longer, or shorter if negative.

    A word is written that much later, so the scores for the age of its audio move by as many frames. Ages that are new
    start lower, the further they are from the known ones.
    """
    moved = dict(weights)
    for name in (name for name in weights if name.endswith(".age")):
        age_HC = weights[name]
        ages = torch.arange(age_HC.shape[1]) - frames
        distance = -ages.clamp(max=0)
        moved[name] = age_HC[:, ages.clamp(0, age_HC.shape[1] - 1)] - _NEW_AGE_FALL * distance
    return moved


def vocabulary_beside(name: str) -> dict[str, int]:
    """Id by token, of the `tokenizer.json` next to the checkpoint `name` (see `read_whisper`)."""
    return read_whisper_vocabulary(find_place(name.removeprefix("whisper:"), None).get("tokenizer.json"))


def prompts(vocabulary: Mapping[str, int], languages: Sequence[str], option: str, *, every: bool = False) -> IntArray:
    """The tokens of Whisper's prompt for each of the languages that it has, `[L, 4]`.

    Raises `ConfigError` that names `option` if it has none of them, or with `every` if it lacks one.
    """
    wanted = [[token.format(language=language) for token in _PROMPT] for language in languages]
    known = [[vocabulary[token] for token in prompt if token in vocabulary] for prompt in wanted]
    ids = np.array([prompt for prompt in known if len(prompt) == len(_PROMPT)])
    if every and len(ids) < len(languages):
        missing = [code for code, prompt in zip(languages, known, strict=True) if len(prompt) < len(_PROMPT)]
        raise ConfigError(f"{option}: Whisper does not have {', '.join(missing)}")
    if not len(ids):
        raise ConfigError(f"{option}: Whisper has none of the languages {', '.join(languages)}")
    return ids


def decoder_start(
    config: LMConfig, decoder: WhisperDecoderWeights, vocabulary: Mapping[str, int], tokenizer: Tokenizer, age: int
) -> dict[str, Array]:
    """The LM's tensors, in float32, from those of a decoder.

    Args:
        config: The LM; of the decoder's layers, `num_layers` are taken, evenly spread.
        decoder: See `read_whisper_decoder`.
        vocabulary: Id by token, as Whisper's tokenizer writes tokens.
        tokenizer: The LM's.
        age: Frames since the start of the word that is to be written.
    """
    transformer, tensors = config.transformer, decoder.tensors
    D = tensors["embedding"].shape[1]
    given = (D, decoder.num_heads, tensors["layers.0.ffn.linear_in.weight"].shape[0])
    if given != (transformer.dim, transformer.num_heads, transformer.ffn_dim) or config.whisper is None:
        raise ConfigError(
            f"model.decoder has width {given[0]}, {given[1]} heads and feed-forward width {given[2]}: "
            "model.lm.transformer must agree, and model.lm.whisper must be given"
        )
    embedding = _embeddings(tensors["embedding"], vocabulary, tokenizer)
    start: dict[str, Array] = {"text_linear.weight": embedding.copy()}
    embedding[[PAD_ID, WORD_ID]] = 0
    # The initial token is zero: the prefix has what it would add.
    start["text_emb.weight"] = np.concatenate([embedding, np.zeros((1, D), np.float32)])
    start["transformer.positions"] = tensors["positions"][: config.whisper.num_positions]
    start |= {f"out_norm.{leaf}": tensors[f"out_norm.{leaf}"] for leaf in ("weight", "bias")}
    ages = -_AGE_FALL * np.abs(np.arange(config.whisper.audio_context) - age).clip(max=50)
    for i, layer in enumerate(chosen_layers(decoder.num_layers, transformer.num_layers)):
        prefix = f"layers.{layer}."
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                start[f"transformer.layers.{i}.{name.removeprefix(prefix)}"] = tensor
        start[f"transformer.layers.{i}.age"] = np.tile(ages, (transformer.num_heads, 1)).astype(np.float32)
    return start


def chosen_layers(given: int, wanted: int) -> Sequence[int]:
    """Which of `given` layers are taken: the first, the last, and others at even distances."""
    if wanted > given:
        raise ConfigError(f"model.lm.transformer.num_layers={wanted}: the decoder has {given} layers")
    return [round(i * (given - 1) / max(1, wanted - 1)) for i in range(wanted)]


def _embeddings(table: Array, vocabulary: Mapping[str, int], tokenizer: Tokenizer) -> Array:
    """A row for each piece: that of Whisper's token, or the mean over the letters of a piece that Whisper lacks."""
    rows = np.zeros((tokenizer.vocab_size, table.shape[1]), np.float32)
    for token, name in enumerate(piece_tokens(tokenizer)):
        if name is None:
            continue
        ids = [vocabulary[name]] if name in vocabulary else [vocabulary[c] for c in name if c in vocabulary]
        rows[token] = table[ids].mean(axis=0) if ids else 0
    rows[PAD_ID] = table[vocabulary[END_OF_TEXT]]
    rows[WORD_ID] = table[vocabulary[spelled(b" ")]]
    return rows


def piece_tokens(tokenizer: Tokenizer) -> list[str | None]:
    """Each piece as Whisper's tokenizer writes it; None for a special token."""
    pieces = map(tokenizer.segments, range(tokenizer.vocab_size))
    return [None if segments is None else spelled(b" ".join(segments)) for segments in pieces]


@torch.no_grad()
def start_model(model: SpeechModel, start: Mapping[str, Array], mean: Tensor | None = None) -> None:
    """Put the tensors of `decoder_start` into a model, and let its latents be means of a frame's features.

    Of a decoder that attends to several vectors per frame, `start_spread` sets the latents instead.
    `mean`: the teacher's mean feature, `[D]`, which a distilled encoder's features lack.
    """
    tensors = {name: torch.from_numpy(array) for name, array in start.items()}
    spread = cast(WhisperDecoder, model.lm.transformer).spread is not None
    if mean is not None and not spread:
        for i in range(model.config.lm.transformer.num_layers):
            prefix = f"transformer.layers.{i}.cross.v_proj."
            tensors[prefix + "bias"] = tensors[prefix + "bias"] + F.linear(mean.cpu(), tensors[prefix + "weight"])
    model.lm.load_state_dict(tensors, strict=False)
    if spread:
        return
    stride = model.config.codec.stride
    weight = model.codec.downsample.weight  # [D, D, 2 * stride]
    weight.zero_()
    weight[:, :, stride:] = torch.eye(len(weight))[:, :, None] / stride


@torch.no_grad()
def start_spread(model: SpeechModel, features_NF: Tensor, mean: Tensor | None = None) -> None:
    """Let the latents be principal components of a frame's features, and the vectors that the decoder sees these again.

    Args:
        model: The codec and the LM, which attends to as many vectors per frame as the encoder has features in one.
        features_NF: All features of each of N frames, one after the other: F = stride * D.
        mean: The teacher's mean feature, `[D]`, which a distilled encoder's features lack.

    Raises:
        ConfigError: The encoder and the LM have different widths.
    """
    spread, weight = cast(WhisperDecoder, model.lm.transformer).spread, model.codec.downsample.weight
    assert spread is not None
    D, stride = len(weight), model.config.codec.stride
    if spread.weight.shape != (stride * D, D):
        raise ConfigError(
            f"model.codec.whisper.dim={D} must be model.lm.transformer.dim={spread.in_features} for several vectors "
            "per frame"
        )
    features_NF = features_NF.float()
    average_F = features_NF.mean(dim=0)
    centred_NF = features_NF - average_F
    axes_FF = torch.linalg.eigh(centred_NF.T @ centred_NF / len(centred_NF)).eigenvectors  # of rising variance
    components_DF = axes_FF[:, -D:].flip(1).T
    weight.zero_()  # [D, D, 2 * stride], first the frame before
    weight[:, :, stride:] = components_DF.unflatten(1, (stride, D)).transpose(1, 2)
    spread.weight.copy_(components_DF.T)
    bias_F = average_F - components_DF.T @ (components_DF @ average_F)
    spread.bias.copy_(bias_F if mean is None else bias_F + mean.to(bias_F).repeat(stride))


def embedded_prompts(decoder: WhisperDecoderWeights, ids_NP: IntArray) -> Tensor:
    """What Whisper's decoder reads for some prompts, `[N, P, D]`."""
    positions = torch.from_numpy(decoder.tensors["positions"][: ids_NP.shape[1]])
    return torch.from_numpy(decoder.tensors["embedding"][ids_NP]) + positions


@torch.no_grad()
def start_prefix(lm: LM, prompt_NPD: Tensor) -> None:
    """Let the prefix be the keys and values of a prompt, the mean of N of them, over audio that is zero."""
    for layer, keys_N2HPd in _prompt_keys(lm, prompt_NPD):
        layer.prefix.copy_(keys_N2HPd.mean(dim=0))


@torch.no_grad()
def start_languages(lm: LM, prompt_LPD: Tensor, all_NPD: Tensor) -> None:
    """Let each of the languages add the difference of its prompt to the mean of all prompts: see `start_prefix`."""
    own, every = _prompt_keys(lm, prompt_LPD), _prompt_keys(lm, all_NPD)
    for (layer, keys_L2HPd), (_, keys_N2HPd) in zip(own, every, strict=True):
        layer.languages.copy_(keys_L2HPd - keys_N2HPd.mean(dim=0))


def _prompt_keys(lm: LM, prompt_NPD: Tensor) -> Iterator[tuple[WhisperDecoderLayer, Tensor]]:
    """Each layer, with its keys and values of the prompts `[N, 2, H, P, d]`."""
    x, spread = prompt_NPD, cast(WhisperDecoder, lm.transformer).spread
    audio_D = x.new_zeros(x.shape[-1]) if spread is None else spread.bias.view(-1, x.shape[-1]).mean(dim=0)
    for module in lm.transformer.layers:
        layer = cast(WhisperDecoderLayer, module)
        normed = layer.norm1(x)
        keys = layer.attn.keys(normed)
        yield layer, torch.stack(list(keys), dim=1)
        x = x + layer.attn.output(F.scaled_dot_product_attention(layer.attn.queries(normed), *keys, is_causal=True))
        x = x + layer.cross.out_proj(layer.cross.v_proj(audio_D))
        x = x + layer.ffn(layer.norm3(x))


@torch.no_grad()
def start_audio_input(model: SpeechModel) -> None:
    """Let the audio input be what the quantiser's projections, by principal components, keep of a latent."""
    quantizer = model.codec.quantizer
    rows = torch.cat([quantizer.semantic.input_proj.weight, quantizer.acoustic.input_proj.weight]).float()
    back = torch.linalg.pinv(rows).to(model.semantic_in.weight.dtype)
    half = len(quantizer.semantic.input_proj.weight)
    model.semantic_in.weight.copy_(back[:, :half])
    model.acoustic_in.weight.copy_(back[:, half:])
