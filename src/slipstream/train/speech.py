"""What a run of phones and text writes next to a model in a published layout, for alignment and further training.

A published layout holds the codec and the LM. A `SpeechModel` has more: the heads that name phones, and the matrices
that tie the LM's audio embeddings to the codebooks. They are in `training.safetensors`, the phones' names in
`phones.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from slipstream.bundle import ModelBundle
from slipstream.checkpoints.checkpoint import read_codec
from slipstream.checkpoints.mimi import parse_codec
from slipstream.checkpoints.sources import find_place
from slipstream.checkpoints.speech import resolve_speech
from slipstream.checkpoints.tensors import Array, read_tensors, write_tensors
from slipstream.data.aligner import Aligner
from slipstream.data.phones import PhoneInventory
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import CodecConfig
from slipstream.nn.build import build_codec, to_tensor
from slipstream.schema import read_json
from slipstream.train.model import SpeechModel
from slipstream.train.precision import fastest

TRAINING_FILE = "training.safetensors"
PHONES_FILE = "phones.json"
CODEC_FILES = ("mimi.safetensors", "mimi.json")
_LEFT_OUT = ("codec.", "lm.", "token_head.")


def write_training_part(model: SpeechModel, phones: PhoneInventory, folder: Path) -> None:
    """Write what a published layout leaves out into an existing `folder`."""
    tensors = {n: t.float().cpu().numpy() for n, t in model.state_dict().items() if not n.startswith(_LEFT_OUT)}
    write_tensors(folder / TRAINING_FILE, tensors)
    write_phones(phones, folder)


def copy_training_part(start: str, folder: Path) -> None:
    """Copy what `write_training_part` wrote next to a model, if it did, to one that shares its codec and LM."""
    with suppress(CheckpointError):
        for name in (TRAINING_FILE, PHONES_FILE):
            shutil.copyfile(find_place(start, None).get(name), folder / name)


def write_phones(phones: PhoneInventory, folder: Path) -> None:
    """Write the names of the phones, in the order of the heads' outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PHONES_FILE).write_text(json.dumps(phones.names, ensure_ascii=False), encoding="utf-8")


def read_phones(path: Path) -> PhoneInventory:
    """The inverse of `write_phones`: `path` is that of the file."""
    return PhoneInventory(json.loads(path.read_text(encoding="utf-8")))


def find_phones(start: str) -> PhoneInventory:
    """The phones of a run's checkpoint (`last.pt`), or of a model or codec that a run left: a folder or a name."""
    return read_phones(Path(start).parent / PHONES_FILE if Path(start).is_file() else _find(start, PHONES_FILE))


def read_speech_weights(start: str) -> dict[str, Tensor]:
    """Weights under a `SpeechModel`'s names, from a run's checkpoint, or from a model that a run left.

    Raises `CheckpointError` for a model that has no phone heads.
    """
    if Path(start).is_file():
        weights: dict[str, Tensor] = torch.load(start, weights_only=True)["weights"]
        return weights
    checkpoint = ModelBundle.resolve(start).checkpoint()
    named = {f"codec.{name}": array for name, array in checkpoint.codec.items()}
    named |= {f"lm.{name}": array for name, array in checkpoint.lm.items()}
    return _tensors(named | read_tensors(_find(start, TRAINING_FILE)))


def load_aligner(start: str) -> Aligner:
    """The phone model that a run left in its `codec` or `model` folder, or that of a built-in model.

    It computes in the type in which this CPU multiplies matrices fastest.

    Raises `CheckpointError` for a model that has no phone heads.
    """
    heads = _tensors(read_tensors(_find(start, TRAINING_FILE)))
    weights, config = find_codec(start)
    codec = build_codec(config, read_codec(weights, config))
    weight = heads["phone_head.weight"]
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": heads["phone_head.bias"]})
    return Aligner(codec, head, find_phones(start), fastest("cpu")[0])


def find_codec(start: str) -> tuple[Sequence[Path], CodecConfig]:
    """The codec of a speech-to-text or text-to-speech model, or one that is alone in its folder."""
    weights, shapes = (Path(start) / name for name in CODEC_FILES)
    if shapes.is_file() and not (Path(start) / "config.json").is_file():
        return [weights], parse_codec(read_json(shapes))
    try:
        bundle = ModelBundle.resolve(start)
    except ConfigError as error:
        try:
            speech = resolve_speech(start)
        except ConfigError:
            raise error from None
        return [speech.codec], speech.config.codec
    return bundle.sources.codec, bundle.config.codec


def _find(start: str, name: str) -> Path:
    try:
        return find_place(start, None).get(name)
    except CheckpointError as error:
        raise CheckpointError(
            f"{start}: {error}. Phone heads are in the built-in model, and in the `codec` or `model` folder of a "
            "`slipstream train` run on phones"
        ) from error


def _tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: to_tensor(array).float() for name, array in arrays.items()}
