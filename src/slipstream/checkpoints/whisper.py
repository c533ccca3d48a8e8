"""Read Whisper's audio encoder and its text decoder, of any size, as canonical tensors.

Three formats are read: Hugging Face safetensors, safetensors with the names of the `openai-whisper` package, and
CTranslate2's `model.bin` (float32, float16, bfloat16, int16 or int8).
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from slipstream.checkpoints.sources import Place, find_optional, find_place, find_shards
from slipstream.checkpoints.tables import Entries, Same, Table, make_rules
from slipstream.checkpoints.tensors import Array, Tensors, read_tensors
from slipstream.errors import CheckpointError
from slipstream.model.config import TransformerConfig, WhisperConfig
from slipstream.model.names import whisper_decoder_shapes, whisper_shapes
from slipstream.model.numerics import WHISPER_POSITIONS, whisper_positions
from slipstream.schema import read_json

_HEAD_DIM = 64  # of every published Whisper
_LAYER = "encoder.layers.{i}."
_HUGGING_FACE: Entries = {
    "encoder.conv{j}.{leaf}": Same("encoder.conv{j}.{leaf}"),
    "encoder.norm.{leaf}": Same("encoder.layer_norm.{leaf}"),
    _LAYER + "norm1.{leaf}": Same(_LAYER + "self_attn_layer_norm.{leaf}"),
    _LAYER + "norm2.{leaf}": Same(_LAYER + "final_layer_norm.{leaf}"),
    _LAYER + "attn.{proj}.{leaf}": Same(_LAYER + "self_attn.{proj}.{leaf}"),
    _LAYER + "ffn.linear_in.{leaf}": Same(_LAYER + "fc1.{leaf}"),
    _LAYER + "ffn.linear_out.{leaf}": Same(_LAYER + "fc2.{leaf}"),
}
_DECODER_LAYER = "decoder.layers.{i}."
_HUGGING_FACE_DECODER: Entries = {
    "embedding": Same("decoder.embed_tokens.weight"),
    "positions": Same("decoder.embed_positions.weight"),
    "out_norm.{leaf}": Same("decoder.layer_norm.{leaf}"),
    "layers.{i}.norm1.{leaf}": Same(_DECODER_LAYER + "self_attn_layer_norm.{leaf}"),
    "layers.{i}.norm2.{leaf}": Same(_DECODER_LAYER + "encoder_attn_layer_norm.{leaf}"),
    "layers.{i}.norm3.{leaf}": Same(_DECODER_LAYER + "final_layer_norm.{leaf}"),
    "layers.{i}.attn.{proj}.{leaf}": Same(_DECODER_LAYER + "self_attn.{proj}.{leaf}"),
    "layers.{i}.cross.{proj}.{leaf}": Same(_DECODER_LAYER + "encoder_attn.{proj}.{leaf}"),
    "layers.{i}.ffn.linear_in.{leaf}": Same(_DECODER_LAYER + "fc1.{leaf}"),
    "layers.{i}.ffn.linear_out.{leaf}": Same(_DECODER_LAYER + "fc2.{leaf}"),
}
# The other formats' names are translated to those of Hugging Face first.
_OPENAI = (
    (r"^(en|de)coder\.blocks\.(\d+)\.", r"\1coder.layers.\2."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"^decoder\.ln\.", "decoder.layer_norm."),
    (r"^decoder\.positional_embedding$", "decoder.embed_positions.weight"),
    (r"^decoder\.token_embedding\.", "decoder.embed_tokens."),
    (r"_attn\.query\.", "_attn.q_proj."),
    (r"_attn\.key\.", "_attn.k_proj."),
    (r"_attn\.value\.", "_attn.v_proj."),
    (r"_attn\.out\.", "_attn.out_proj."),
    (r"\.attn\.query\.", ".self_attn.q_proj."),
    (r"\.attn\.key\.", ".self_attn.k_proj."),
    (r"\.attn\.value\.", ".self_attn.v_proj."),
    (r"\.attn\.out\.", ".self_attn.out_proj."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"^encoder\.ln_post\.", "encoder.layer_norm."),
    (r"^encoder\.positional_embedding$", "encoder.embed_positions.weight"),
)
_CTRANSLATE2 = (
    (r"^(en|de)coder/layer_(\d+)/", r"\1coder.layers.\2."),
    (r"/gamma$", ".weight"),
    (r"/beta$", ".bias"),
    (r"self_attention/layer_norm", "self_attn_layer_norm"),
    (r"self_attention/linear_1", "self_attn.out_proj"),
    (r"ffn/layer_norm", "final_layer_norm"),
    (r"ffn/linear_0", "fc1"),
    (r"ffn/linear_1", "fc2"),
    (r"\.attention/layer_norm", ".encoder_attn_layer_norm"),
    (r"\.attention/linear_0", ".encoder_attn.q_proj"),
    (r"\.attention/linear_2", ".encoder_attn.out_proj"),
    (r"^(en|de)coder/position_encodings/encodings$", r"\1coder.embed_positions.weight"),
    (r"^decoder/embeddings/", "decoder.embed_tokens/"),
    (r"/", "."),
)
_CTRANSLATE2_DTYPES: dict[int, np.dtype[np.generic]] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.int8),
    2: np.dtype(np.int16),
    3: np.dtype(np.int32),
    4: np.dtype(np.float16),
    5: np.dtype(ml_dtypes.bfloat16),
}


class WhisperEncoderWeights(NamedTuple):
    """An encoder's shape, with the default context, and its tensors in float32 under the names of `whisper_shapes`."""

    config: WhisperConfig
    tensors: dict[str, Array]


class WhisperDecoderWeights(NamedTuple):
    """A decoder's tensors in float32: `embedding`, `positions`, `layers.{i}.*` as in the LM, `out_norm.*`."""

    num_layers: int
    num_heads: int
    tensors: dict[str, Array]

    @property
    def transformer(self) -> TransformerConfig:
        """The shape of the layers."""
        ffn_dim, dim = self.tensors["layers.0.ffn.linear_in.weight"].shape
        return _decoder_shape(dim, self.num_heads, self.num_layers, ffn_dim)


def _decoder_shape(dim: int, heads: int, layers: int, ffn_dim: int) -> TransformerConfig:
    return TransformerConfig(
        dim=dim, num_heads=heads, num_layers=layers, ffn_dim=ffn_dim, context=1,
        max_period=10_000.0, norm="layer_norm", gated=False, positions="none",
    )  # fmt: skip


def read_whisper(name: str) -> WhisperEncoderWeights:
    """Read the encoder of a Whisper checkpoint.

    Args:
        name: a folder or a repository of the hub that holds `model.safetensors` (or its shards) or CTranslate2's
            `model.bin`; or one file. A leading `whisper:` is accepted.

    Raises:
        CheckpointError: the checkpoint cannot be found or read, or does not hold a Whisper encoder.

    Example:
        >>> config, tensors = read_whisper("whisper:openai/whisper-base")
    """
    tensors, place, where = _read(name)
    config = _config(tensors, place, where)
    if (positions := tensors.pop("encoder.embed_positions.weight", None)) is not None:
        _check_positions(positions, config, where)
    others = r"(?!encoder\.)|encoder\.(num_|scale_|embed_positions|layers\.\d+\.self_attn\.num_)"
    table = Table(make_rules(whisper_shapes(config), _HUGGING_FACE), skipped=others)
    ours = table.read(tensors, where)
    return WhisperEncoderWeights(config, {name: array.astype(np.float32) for name, array in ours.items()})


def read_whisper_decoder(name: str) -> WhisperDecoderWeights:
    """Read the text decoder of a Whisper checkpoint; arguments and errors as for `read_whisper`.

    Example:
        >>> decoder = read_whisper_decoder("whisper:openai/whisper-base")
    """
    tensors, place, where = _read(name)
    embedding, positions = (tensors.get(f"decoder.embed_{part}.weight") for part in ("tokens", "positions"))
    linear = tensors.get("decoder.layers.0.fc1.weight")
    if embedding is None or embedding.ndim != 2 or positions is None or linear is None or linear.ndim != 2:
        raise CheckpointError(f"{where} does not contain a Whisper decoder")
    dim, layers = embedding.shape[1], _num_layers(tensors, "decoder")
    heads = _num_heads("decoder", dim, place, where)
    transformer = _decoder_shape(dim, heads, layers, len(linear))
    shapes = {"embedding": embedding.shape, "out_norm.weight": (dim,), "out_norm.bias": (dim,)}
    shapes |= whisper_decoder_shapes(transformer, len(positions))
    # The output is that of the embedding.
    others = r"(?!decoder\.)|decoder\.(projection|num_|scale_|start_|activation|al|pre_norm|layers\.\d+\..*\.num_)"
    ours = Table(make_rules(shapes, _HUGGING_FACE_DECODER), skipped=others).read(tensors, where)
    return WhisperDecoderWeights(layers, heads, {name: array.astype(np.float32) for name, array in ours.items()})


def _read(name: str) -> tuple[dict[str, Array], Place, str]:
    """All tensors of a checkpoint under Hugging Face's names, where it is, and its files for messages."""
    name = name.removeprefix("whisper:")
    if Path(name).is_file():
        paths, place = [Path(name)], find_place(Path(name).parent, None)
    else:
        place = find_place(name, None)
        paths = list(_weights(place, name))
    tensors: dict[str, Array] = {}
    for path in paths:
        tensors |= _read_file(path)
    return tensors, place, ", ".join(map(str, paths))


def _weights(place: Place, name: str) -> tuple[Path, ...]:
    try:
        return find_shards(place)
    except CheckpointError as error:
        if (path := find_optional(place, "model.bin")) is not None:
            return (path,)
        raise CheckpointError(
            f"{name} does not contain a Whisper checkpoint: expected model.safetensors, its shards, or CTranslate2's "
            f"model.bin ({error})"
        ) from error


def _read_file(path: Path) -> dict[str, Array]:
    """A file's tensors under Hugging Face's names, without the leading `model.`."""
    if path.suffix == ".bin":
        return _split(read_ctranslate2(path))
    return {_spelled(name.removeprefix("model."), _OPENAI): array for name, array in read_tensors(path).items()}


def _spelled(name: str, substitutions: tuple[tuple[str, str], ...]) -> str:
    for pattern, usual in substitutions:
        name = re.sub(pattern, usual, name)
    return name


def _config(tensors: Tensors, place: Place, where: str) -> WhisperConfig:
    conv, linear = tensors.get("encoder.conv1.weight"), tensors.get("encoder.layers.0.fc1.weight")
    if conv is None or conv.ndim != 3 or linear is None or linear.ndim != 2:
        some = ", ".join(list(tensors)[:5]) or "none"
        raise CheckpointError(f"{where} does not contain a Whisper encoder: its tensors are called {some} ...")
    dim, n_mels, _ = conv.shape
    heads, layers = _num_heads("encoder", dim, place, where), _num_layers(tensors, "encoder")
    return WhisperConfig(n_mels=n_mels, dim=dim, num_heads=heads, num_layers=layers, ffn_dim=linear.shape[0])


def _num_heads(part: str, dim: int, place: Place, where: str) -> int:
    """Heads of the encoder or the decoder, as `config.json` gives them, or of the usual width."""
    key = f"{part}_attention_heads"
    heads = dim // _HEAD_DIM
    if (path := find_optional(place, "config.json")) is not None:
        heads = read_json(path).get(key, heads)
    if type(heads) is not int or heads < 1 or dim % heads:
        raise CheckpointError(
            f"{where}: a width of {dim} does not divide into {heads!r} heads: give the number of heads as "
            f"{key} in a config.json next to it"
        )
    return heads


def _num_layers(tensors: Tensors, part: str) -> int:
    return 1 + max(int(match[1]) for name in tensors if (match := re.match(rf"{part}\.layers\.(\d+)\.", name)))


def _check_positions(positions: Array, config: WhisperConfig, where: str) -> None:
    """Refuse positions that are not the sinusoids that the encoder computes."""
    rows = min(len(positions), WHISPER_POSITIONS)
    ours = whisper_positions(config.dim)[:rows]
    if positions.shape[1:] != (config.dim,) or not np.allclose(positions[:rows].astype(np.float32), ours, atol=0.01):
        raise CheckpointError(f"{where}: its positions are not Whisper's sinusoids; learnt ones are not supported")


def read_ctranslate2(path: Path) -> dict[str, Array]:
    """The variables of a CTranslate2 Whisper model, by name; quantised ones become float32.

    Raises `CheckpointError` for a file that is cut short or not such a model.
    """
    data, at = path.read_bytes(), 0

    def number(form: str) -> int:
        nonlocal at
        value: int = struct.unpack_from("<" + form, data, at)[0]
        at += struct.calcsize("<" + form)
        return value

    def text() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at].rstrip(b"\0").decode()

    tensors: dict[str, Array] = {}
    try:
        version = number("I")
        if version < 4 or not (specification := text()).startswith("Whisper"):
            what = f"version {version}" if version < 4 else specification
            raise CheckpointError(f"{path} is not a Whisper model of CTranslate2, version 4 or later: found {what!r}")
        number("I")  # the specification's revision
        for _ in range(number("I")):
            name, shape = text(), [number("I") for _ in range(number("B"))]
            dtype, size = _CTRANSLATE2_DTYPES[number("B")], number("I")
            tensors[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
            at += size
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a CTranslate2 model, or cut short: {error}") from error
    return {name: _plain(tensors, name) for name in tensors if not name.endswith("_scale")}


def _plain(tensors: Tensors, name: str) -> Array:
    """A variable, divided by its scale (one number, or one per row) if it has one."""
    scale = tensors.get(name + "_scale")
    if scale is None:
        return tensors[name]
    rows = scale.astype(np.float32).reshape(-1, *[1] * (tensors[name].ndim - 1))
    return tensors[name].astype(np.float32) / rows


def _split(variables: Tensors) -> dict[str, Array]:
    """A CTranslate2 model under Hugging Face's names: with separate queries, keys and values."""
    tensors: dict[str, Array] = {}
    merged = r"((?:en|de)coder/layer_\d+/)(self_attention/linear_0|attention/linear_1)/(weight|bias)"
    for name, array in variables.items():
        if match := re.fullmatch(merged, name):
            own = match[2].startswith("self")
            prefix = _spelled(match[1], _CTRANSLATE2) + ("self_attn" if own else "encoder_attn")
            for part, rows in zip("qkv" if own else "kv", np.split(array, 3 if own else 2), strict=True):
                if (part, match[3]) != ("k", "bias"):  # zeros: Whisper's keys have no bias
                    tensors[f"{prefix}.{part}_proj.{match[3]}"] = rows
        elif name.startswith(("encoder/", "decoder/")):
            # An int8 convolution is kept as a matrix of one row for each output channel.
            if re.fullmatch(r"encoder/conv\d/weight", name) and array.ndim == 2:
                array = array.reshape(len(array), -1, 3)
            tensors[_spelled(name, _CTRANSLATE2)] = array
    return tensors
