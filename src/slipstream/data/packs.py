"""Packs: log-mel frames, codec tokens or samples of many recordings in one file, with their texts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slipstream.arrays import FloatArray
from slipstream.data.opus import BIT_RATE, decode_opus, encode_opus
from slipstream.errors import CheckpointError
from slipstream.nn.mel import LogMel


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording in a pack: its rows, its text, and the times of words and phones.

    `words` (text, start, end) and `phones` (name, start) are empty where times are unknown; `phone_sequence` has the
    phones without times. Seconds from the recording's start. `licence`: as the manifest names it (`license`).
    `offset`, `size`: its bytes, in a pack of Opus.
    """

    start: int
    length: int
    text: str
    language: str
    dataset: str
    speaker: str
    words: tuple[tuple[str, float, float], ...] = ()
    phones: tuple[tuple[str, float], ...] = ()
    phone_sequence: tuple[str, ...] = field(default=())
    licence: str = ""
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class PackKind:
    """What the rows of a pack are: `mel` frames of the codec's front end (float16), the codec's `tokens`, or `samples`
    (both int16).

    `width`: bands, codebooks, or 1. `rate`: rows a second. `silence`: a row of silence, for the pauses between clips.
    """

    kind: Literal["mel", "tokens", "samples"]
    width: int
    rate: float
    silence: tuple[float, ...]

    @property
    def dtype(self) -> type[np.float16] | type[np.int16]:
        return np.float16 if self.kind == "mel" else np.int16


@dataclass(frozen=True, slots=True)
class PackCodec:
    """The codec that made the tokens of a pack: the name or folder of its model, and `codec_fingerprint`.

    `tail`: frames of silence that were encoded after each recording, for an encoder whose tokens are late.
    """

    model: str
    fingerprint: str
    tail: int = 0


class Pack:
    """A folder with `rows.bin`, all rows `[N, width]` one after the other, `clips.jsonl` and `pack.json`.

    `codec`: what made the tokens; None for other packs, and for those of versions that did not record it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            about = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
            index = (folder / "clips.jsonl").read_text(encoding="utf-8")
            self.folder, self.coding, codec = folder, about.pop("coding", None), about.pop("codec", None)
            self.codec = None if codec is None else PackCodec(**codec)
            self.kind = PackKind(**(about | {"silence": tuple(about["silence"])}))
            self.clips = [_clip(line) for line in index.splitlines()]
            if not self.clips:
                raise CheckpointError(f"{folder} is a pack without clips")
            self._bytes = np.memmap(folder / "rows.bin", np.uint8, "r")
        except OSError as error:
            raise CheckpointError(f"{folder} is not a pack; `slipstream data pack` makes one") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{folder} is a damaged pack ({problem}); `slipstream data pack` makes it") from error

    def rows(self, clip: Clip) -> npt.NDArray[Any]:
        """The clip's rows `[N, width]`: float32 in the front end's scale, int64 tokens, or samples of 16 bits."""
        if self.coding == "opus":
            data = self._bytes[clip.offset : clip.offset + clip.size].tobytes()
            return decode_opus(data, round(self.kind.rate), clip.length)[:, None]
        rows = self._plain()[clip.start : clip.start + clip.length]
        return rows.astype(np.int64 if self.kind.kind == "tokens" else np.float32)

    def samples(self) -> npt.NDArray[np.int16]:
        """All samples of a pack of samples, `[S]`. Raises `CheckpointError` for another pack."""
        if self.kind.kind != "samples":
            raise CheckpointError(f"a pack of {self.kind.kind} where one of samples is needed")
        if self.coding == "opus":
            return np.concatenate([self.rows(clip)[:, 0] for clip in self.clips]).astype(np.int16)
        return self._plain()[:, 0].astype(np.int16, copy=False)

    def _plain(self) -> npt.NDArray[Any]:
        return self._bytes.view(self.kind.dtype).reshape(-1, self.kind.width)


def write_pack(
    folder: Path,
    kind: PackKind,
    items: Iterable[tuple[npt.NDArray[Any], Clip]],
    *,
    codec: PackCodec | None = None,
    opus: bool = False,
    bit_rate: int = BIT_RATE,
) -> int:
    """Write rows and clips (whose `start` and `length` are set here). Returns the number of clips.

    `codec` is what made the tokens. With `opus`, samples are encoded at `bit_rate`, to a twelfth of their size, and
    decoded when they are drawn. A pack that was there is replaced at the end, or stays as it was. Raises
    `CheckpointError` when there are no items.
    """
    folder.mkdir(parents=True, exist_ok=True)
    position = count = 0
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) as unfinished:
        aside = Path(unfinished)
        with (
            (aside / "rows.bin").open("wb") as out,
            (aside / "clips.jsonl").open("w", encoding="utf-8") as index,
        ):
            for rows, clip in items:
                data = rows.astype(kind.dtype).tobytes()
                if opus:
                    data = encode_opus(rows[:, 0].astype(np.int16), round(kind.rate), bit_rate)
                placed = asdict(clip) | {
                    "start": position,
                    "length": len(rows),
                    "offset": out.tell(),
                    "size": len(data),
                }
                out.write(data)
                index.write(json.dumps(placed) + "\n")  # in ASCII: a text may hold other separators of lines
                position += len(rows)
                count += 1
        if not count:
            raise CheckpointError(f"{folder}: a pack must have recordings, and none is left")
        about = asdict(kind) | ({"coding": "opus"} if opus else {}) | ({"codec": asdict(codec)} if codec else {})
        (aside / "pack.json").write_text(json.dumps(about), encoding="utf-8")
        # Without pack.json it is no pack: the old one goes first, the new one comes last.
        (folder / "pack.json").unlink(missing_ok=True)
        for name in ("rows.bin", "clips.jsonl", "pack.json"):
            (aside / name).replace(folder / name)
    return count


@torch.inference_mode()
def log_mel(front_end: LogMel, samples: FloatArray) -> FloatArray:
    """The front end's frames `[F, M]` of samples `[S]`."""
    scaled: FloatArray = front_end.scale(mel_power(front_end, torch.from_numpy(samples))).numpy()
    return scaled


def mel_power(front_end: LogMel, samples: Tensor) -> Tensor:
    """The power in each band, `[..., F, M]`, of samples `[..., S]`: by a Fourier transform, ten times faster."""
    hann = front_end.fourier[0, 0]  # the cosine at 0 Hz is the window itself
    x = torch.nn.functional.pad(samples, (front_end.context, -samples.shape[-1] % front_end.hop))
    power = torch.fft.rfft(x.unfold(-1, len(hann), front_end.hop) * hann).abs().square()
    bands: Tensor = power[..., : front_end.bands.shape[1]] @ front_end.bands.T
    return bands


def _clip(line: str) -> Clip:
    raw = json.loads(line)
    raw["words"] = tuple((w[0], float(w[1]), float(w[2])) for w in raw["words"])
    raw["phones"] = tuple((p[0], float(p[1])) for p in raw["phones"])
    raw["phone_sequence"] = tuple(raw["phone_sequence"])
    return Clip(**raw)
