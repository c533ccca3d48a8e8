"""The content of packs: recordings as log-mel frames, samples or codec tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from slipstream.arrays import FloatArray
from slipstream.audio import SAMPLE_RATE, load
from slipstream.data.espeak import phones_of
from slipstream.data.manifest import Recording, each
from slipstream.data.packs import Clip, PackKind, log_mel
from slipstream.errors import SlipstreamError
from slipstream.model.config import CodecConfig, MelConfig
from slipstream.nn.mel import LogMel
from slipstream.nn.mimi import Mimi

LeftOut = Callable[[Recording, SlipstreamError], None]
"""Called with a recording that cannot be used, and the error; without it, the error is raised."""


def mel_items(
    recordings: Iterable[Recording],
    config: MelConfig,
    on_error: LeftOut | None = None,
) -> tuple[PackKind, Iterator[tuple[FloatArray, Clip]]]:
    """The kind and content of a pack of log-mel frames, for `write_pack`."""
    front_end = LogMel(config, SAMPLE_RATE)
    silence = log_mel(front_end, np.zeros(config.window, np.float32))[-1]
    kind = PackKind("mel", config.n_mels, SAMPLE_RATE / config.hop, tuple(map(float, silence)))
    return kind, each(recordings, lambda r: (log_mel(front_end, load(r.audio)), _with_phones(r)), on_error)


def sample_items(
    recordings: Iterable[Recording], on_error: LeftOut | None = None
) -> tuple[PackKind, Iterator[tuple[npt.NDArray[np.int16], Clip]]]:
    """The kind and content of a pack of samples, for `write_pack`; phones only where they have times."""

    def item(recording: Recording) -> tuple[npt.NDArray[np.int16], Clip]:
        samples = np.clip(load(recording.audio), -1, 1)
        return np.round(samples * 32767).astype(np.int16)[:, None], _clip(recording)

    return PackKind("samples", 1, float(SAMPLE_RATE), (0.0,)), each(recordings, item, on_error)


def token_items(
    recordings: Iterable[Recording], codec: Mimi, device: str = "cpu", on_error: LeftOut | None = None
) -> tuple[PackKind, Iterator[tuple[npt.NDArray[np.int64], Clip]]]:
    """The kind and content of a pack of codec tokens, for `write_pack`.

    A recording that is encoded by a late encoder is followed by silence, so that its tokens hold all of it.
    """
    config: CodecConfig = codec.config
    tail = config.blank_frames * config.frame_samples
    codec = codec.eval().to(device)

    @torch.inference_mode()
    def encode(samples: FloatArray) -> npt.NDArray[np.int64]:
        codes, _ = codec.encode(torch.from_numpy(samples)[None].to(device))
        tokens: npt.NDArray[np.int64] = codes[0].T.cpu().numpy()
        return tokens

    def item(recording: Recording) -> tuple[npt.NDArray[np.int64], Clip]:
        return encode(np.pad(load(recording.audio, config.sample_rate), (0, tail))), _clip(recording)

    # The codec has a context of some seconds: only a long silence ends with the tokens of silence.
    silence = encode(np.zeros(10 * config.sample_rate, np.float32))[-1]
    kind = PackKind("tokens", config.num_codebooks, config.frame_rate, tuple(map(float, silence)))
    return kind, each(recordings, item, on_error)


def _clip(recording: Recording) -> Clip:
    """The entry of a recording in a pack."""
    words = tuple((w.text, w.start, w.end) for w in recording.words)
    licence = str(recording.extra.get("license") or recording.extra.get("licence") or "")
    return Clip(
        0,
        0,
        recording.text,
        recording.lang,
        recording.dataset,
        recording.speaker,
        words,
        recording.phones,
        licence=licence,
    )


def _with_phones(recording: Recording) -> Clip:
    """The same, with the phones of its text where they have no times."""
    if recording.phones:
        return _clip(recording)
    sequence = tuple(phone for word in phones_of(recording.text, recording.lang) for phone in word)
    return replace(_clip(recording), phone_sequence=sequence)
