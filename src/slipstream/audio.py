"""Audio in: any file, raw PCM, arrays or the microphone, as a stream of mono frames at the model's rate.

Files are decoded by FFmpeg's libraries (through PyAV) piece by piece, so that an hour takes no more memory than a
second, and resampled by soxr, whose stream gives the same samples for every way of cutting it.
Shapes: C channels, S samples, T frames. Samples are float32, full scale is 1.
"""

from __future__ import annotations

import logging
import os
import queue
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from slipstream.errors import AudioError
from slipstream.types import FloatArray

if TYPE_CHECKING:
    from types import ModuleType

    import av
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream

SAMPLE_RATE = 24_000
"""What Mimi hears, in Hz."""
FRAME_SAMPLES = 1920
"""One frame of Mimi: 80 ms."""

Channels = Literal["mix", "separate"]
Encoding = Literal["pcm_s16le", "pcm_s24le", "pcm_f32le", "mulaw", "alaw"]
Source = str | os.PathLike[str] | BinaryIO

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RawFormat:
    """What headerless audio is: its encoding, `sample_rate` in Hz, and how many channels are interleaved."""

    encoding: Encoding
    sample_rate: int
    channels: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            raise AudioError(f"unknown encoding {self.encoding!r}: choose one of {', '.join(get_args(Encoding))}")
        _check_rate(self.sample_rate)
        if self.channels < 1:
            raise AudioError(f"raw audio of {self.channels} channels: there must be at least one")

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample of one channel."""
        return {"pcm_s16le": 2, "pcm_s24le": 3, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}[self.encoding]


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file's header says: `duration` in seconds (None where it does not say), `sample_rate` in Hz."""

    duration: float | None
    sample_rate: int
    channels: int
    codec: str


def decode(
    source: Source, *, raw: RawFormat | None = None, channels: Channels = "mix", sample_rate: int = SAMPLE_RATE
) -> Iterator[FloatArray]:
    """Decode a file, or a binary file object such as a pipe, as a stream.

    Yields `[C, S]` pieces of any length at `sample_rate`; C is 1 for `mix`, the source's channels for `separate`.
    `raw` declares the format of audio without a header. What is damaged or missing is left out, or replaced by silence
    where the file's timestamps tell how long it was, with a warning in the log.
    Raises `AudioError` when there is nothing to read, no audio in it, or a sample that is not a finite number.
    """
    name = _name(source)
    with _opened(source, name) as file:
        pieces = _raw_pieces(file, raw, name) if raw else _container_pieces(file, name)
        yield from _resampled(pieces, channels, sample_rate, name)


def load(source: Source, sample_rate: int = SAMPLE_RATE) -> FloatArray:
    """Decode a whole file to one mono array `[S]` at `sample_rate`. Raises as `decode` does."""
    return np.concatenate([piece[0] for piece in decode(source, sample_rate=sample_rate)])


def probe(source: Source) -> AudioInfo:
    """Read a file's header only. Raises `AudioError` when there is no audio in it."""
    name = _name(source)
    with _opened(source, name) as file, _container(file, name) as container:
        stream = _audio_stream(container, name)
        duration = _declared_seconds(stream, container)
        if duration is None and container.duration and container.format.name not in _GUESSED_DURATION:
            duration = container.duration / 1_000_000
        return AudioInfo(
            duration=duration,
            sample_rate=stream.codec_context.sample_rate,
            channels=stream.codec_context.channels,
            codec=stream.codec_context.name,
        )


def to_float(samples: npt.ArrayLike) -> FloatArray:
    """Check an array of samples and bring it to float32 `[C, S]`.

    `samples`: `[S]` or `[C, S]`; floats within [-1, 1], or signed integers of 8 to 32 bits, whose type is full scale.
    Raises `AudioError` for another shape or type, integers in disguise, and values that are not finite numbers.
    """
    array = np.asarray(samples)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not len(array):
        raise AudioError(f"audio has shape {np.shape(samples)}: expected [samples] or [channels, samples]")
    if len(array) > max(_MOST_CHANNELS, array.shape[1]):
        raise AudioError(f"audio of shape {array.shape} has channels last: pass its transpose, [channels, samples]")
    if array.dtype == np.int64:
        raise AudioError("audio of type int64 does not say its full scale: pass 16-bit samples as int16")
    if np.issubdtype(array.dtype, np.signedinteger):
        return _from_integers(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"audio of type {array.dtype}: expected floats within [-1, 1] or signed integers")
    _check_finite(array, "the array")
    if array.size and (peak := float(np.abs(array).max())) > _LOUDEST:
        raise AudioError(f"float audio lies within [-1, 1], but its peak is {peak:.4g}: divide 16-bit values by 32768")
    return array.astype(np.float32, copy=False)


def mix(audio_CS: FloatArray) -> FloatArray:
    """Average the channels: `[C, S]` to `[1, S]`."""
    return audio_CS if len(audio_CS) == 1 else audio_CS.mean(axis=0, keepdims=True)


class Resampler:
    """A stream at one rate made a stream at another, in Hz. Its samples do not depend on how the stream is cut."""

    def __init__(self, from_rate: int, to_rate: int = SAMPLE_RATE, channels: int = 1) -> None:
        _check_rate(from_rate)
        self.from_rate, self.channels = from_rate, channels
        self._soxr: Any = None
        if from_rate != to_rate:
            import soxr

            stream: Any = soxr.ResampleStream
            self._soxr = stream(from_rate, to_rate, channels, dtype="float32", quality="HQ")

    def push(self, audio_CS: FloatArray) -> FloatArray:
        """Take `[C, S]` in, give what is ready, `[C, S']`; the rest lags by at most 0.1 s."""
        return audio_CS if self._soxr is None else self._resample(audio_CS, last=False)

    def flush(self) -> FloatArray:
        """Give what is left, `[C, S']`; nothing may be pushed after it."""
        nothing = np.zeros((self.channels, 0), np.float32)
        return nothing if self._soxr is None else self._resample(nothing, last=True)

    def _resample(self, audio_CS: FloatArray, last: bool) -> FloatArray:
        resampled: FloatArray = self._soxr.resample_chunk(np.ascontiguousarray(audio_CS.T), last=last)
        return np.ascontiguousarray(resampled.T)


class Framer:
    """Cuts a mono stream, whatever its chunks, into frames of exactly `frame_samples`."""

    def __init__(self, frame_samples: int = FRAME_SAMPLES) -> None:
        self.frame_samples = frame_samples
        self._rest = np.zeros(0, np.float32)

    @property
    def buffered(self) -> int:
        """Samples that wait for their frame to fill, fewer than `frame_samples`."""
        return len(self._rest)

    def push(self, audio_S: FloatArray) -> FloatArray:
        """Take `[S]` samples in, give the frames they complete, `[T, frame_samples]`, T from 0."""
        samples = np.concatenate([self._rest, audio_S])
        whole = len(samples) - len(samples) % self.frame_samples
        self._rest = samples[whole:].copy()
        return samples[:whole].reshape(-1, self.frame_samples)

    def flush(self) -> tuple[FloatArray, int]:
        """Give the last frame, `[T, frame_samples]` with T 0 or 1, zeros after its samples, and how many are real."""
        real = self.buffered
        padding = np.zeros(-real % self.frame_samples, np.float32)
        return self.push(padding), real


class PcmDecoder:
    """Decodes headerless audio from a stream of bytes, wherever the bytes are cut."""

    def __init__(self, format: RawFormat) -> None:
        self.format = format
        self._rest = b""

    @property
    def buffered(self) -> int:
        """Bytes that wait for the rest of their sample."""
        return len(self._rest)

    def push(self, data: bytes) -> FloatArray:
        """Take bytes in, give the samples they complete, `[C, S]`."""
        data = self._rest + data
        whole = len(data) - len(data) % (self.format.sample_bytes * self.format.channels)
        self._rest = data[whole:]
        samples = _DECODE_PCM[self.format.encoding](np.frombuffer(data[:whole], np.uint8))
        return np.ascontiguousarray(samples.reshape(-1, self.format.channels).T)


@dataclass(frozen=True, slots=True)
class InputDevice:
    """A microphone: its number and name (either selects it), and the rate it prefers, in Hz."""

    index: int
    name: str
    channels: int
    sample_rate: int
    is_default: bool


def input_devices() -> list[InputDevice]:
    """List the microphones. Raises `AudioError` when the extra `mic` or PortAudio is not installed."""
    sounddevice = _sounddevice()
    default = sounddevice.default.device[0]
    return [
        InputDevice(
            index=device["index"],
            name=device["name"],
            channels=device["max_input_channels"],
            sample_rate=round(device["default_samplerate"]),
            is_default=device["index"] == default,
        )
        for device in sounddevice.query_devices()
        if device["max_input_channels"] > 0
    ]


def microphone(device: int | str | None = None) -> Iterator[FloatArray]:
    """Record from a microphone until the iterator is closed; yields `[1, S]` pieces at `SAMPLE_RATE`.

    `device`: number or part of a name as `input_devices` gives them; None is the system's default.
    Raises `AudioError` when there is no such device, or its audio is taken too slowly by more than a minute.
    """
    sounddevice = _sounddevice()
    try:
        rate = round(sounddevice.query_devices(device, "input")["default_samplerate"])
        blocks: queue.Queue[FloatArray] = queue.Queue(_LONGEST_BACKLOG_SECONDS * _MICROPHONE_BLOCKS_PER_SECOND)
        lost = False

        def keep(block_SC: FloatArray, frames: int, time: object, status: Any) -> None:
            nonlocal lost
            if status.input_overflow:
                logger.warning("the microphone lost audio: this machine is too busy to record it")
            try:
                blocks.put_nowait(block_SC.T.copy())
            except queue.Full:
                lost = True

        resampler = Resampler(rate)
        with sounddevice.InputStream(
            samplerate=rate,
            blocksize=rate // _MICROPHONE_BLOCKS_PER_SECOND,
            device=device,
            channels=1,
            dtype="float32",
            callback=keep,
        ):
            while not lost:
                yield resampler.push(blocks.get())
    except (ValueError, sounddevice.PortAudioError) as error:
        raise AudioError(f"no microphone to record from: {error}") from error
    raise AudioError(f"{_LONGEST_BACKLOG_SECONDS} s behind the microphone: this model is too slow on this machine")


# ------------------------------------------------------------------------------------------------------------- details

_MOST_CHANNELS = 64
_LOUDEST = 100.0  # lossy decoders overshoot 1 a little; integers stored as floats reach thousands
_READ_BYTES = 1 << 16
_MICROPHONE_BLOCKS_PER_SECOND = 25
_LONGEST_BACKLOG_SECONDS = 60
_TRUNCATION_SECONDS = 1.0
# Shorter gaps between timestamps are the rounding of the container and the delay of the encoder; longer ones are
# timestamps gone wrong, such as a counter that was set anew.
_SHORTEST_GAP_SECONDS, _LONGEST_GAP_SECONDS = 0.1, 3600.0
# ADTS has no header to state a duration; FFmpeg guesses one from the first bit rates.
_GUESSED_DURATION = {"aac"}

# No protocol is called "none": a playlist or a concat script cannot make FFmpeg open other files or addresses.
_CONTAINER_OPTIONS = {"protocol_whitelist": "none"}


def _name(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", "the stream")
    return "standard input" if name in (0, "<stdin>") else str(name)


@contextmanager
def _opened(source: Source, name: str) -> Iterator[BinaryIO]:
    if not isinstance(source, (str, os.PathLike)):
        yield source
        return
    path = Path(source)
    if path.is_dir():
        raise AudioError(f"{name}: is a folder, not an audio file")
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise AudioError(f"{name}: no such file") from error
    except OSError as error:
        raise AudioError(f"{name}: cannot be read: {error.strerror}") from error
    with file:
        if path.is_file() and not path.stat().st_size:
            raise AudioError(f"{name}: the file is empty")
        yield file


@contextmanager
def _container(file: BinaryIO, name: str) -> Iterator[av.container.InputContainer]:
    import av

    try:
        container = av.open(file, mode="r", metadata_errors="ignore", options=_CONTAINER_OPTIONS)
    except av.error.FFmpegError as error:
        reason = _refusal(file) or error.strerror
        raise AudioError(f"{name}: not audio that FFmpeg can read: {reason}{_pipe_hint(file)}") from error
    with container:
        yield container


def _refusal(file: BinaryIO) -> str | None:
    """Why FFmpeg refuses a file, which it tells its log and not its caller: so the file is opened once more."""
    import av

    if not file.seekable():
        return None
    file.seek(0)
    skip_repeated = av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as log:
            av.open(file, mode="r", metadata_errors="ignore", options=_CONTAINER_OPTIONS).close()
    except av.error.FFmpegError:
        return log[-1][2].strip() if log else None
    finally:
        av.logging.set_level(None)
        av.logging.set_skip_repeated(skip_repeated)
    return None


def _pipe_hint(file: BinaryIO) -> str:
    return "" if file.seekable() else " (some formats cannot be read from a pipe: save it to a file first)"


def _audio_stream(container: av.container.InputContainer, name: str) -> AudioStream:
    stream = container.streams.best("audio")
    if stream is None:
        raise AudioError(f"{name}: has no audio track")
    audio = cast("AudioStream", stream)
    if audio.codec_context is None:
        raise AudioError(f"{name}: FFmpeg has no decoder for its audio track")
    if audio.codec_context.sample_rate <= 0:
        raise AudioError(f"{name}: its header states a sample rate of {audio.codec_context.sample_rate} Hz")
    return audio


def _declared_seconds(stream: AudioStream, container: av.container.InputContainer) -> float | None:
    if stream.duration is None or stream.time_base is None or container.format.name in _GUESSED_DURATION:
        return None
    return float(stream.duration * stream.time_base)


_Piece = tuple[FloatArray, int]
"""Samples `[C, S]` and their rate in Hz."""


def _container_pieces(file: BinaryIO, name: str) -> Iterator[_Piece]:
    with _container(file, name) as container:
        stream = _audio_stream(container, name)
        start = (container.start_time or 0) / 1_000_000
        damaged, seconds, missing = 0, 0.0, 0.0
        for packet_frames in _decoded_packets(container, stream):
            damaged += packet_frames is None
            for frame in packet_frames or ():
                samples_CS, rate = _frame_samples(frame), frame.sample_rate
                gap = 0.0 if frame.time is None else frame.time - start - seconds
                if _SHORTEST_GAP_SECONDS < gap < _LONGEST_GAP_SECONDS:
                    yield from _silence(gap, rate, len(samples_CS))
                    missing += gap
                    seconds += gap
                seconds += samples_CS.shape[1] / rate
                yield samples_CS, rate
        if damaged and not seconds:
            raise AudioError(f"{name}: none of its audio can be decoded{_pipe_hint(file)}")
        if damaged:
            logger.warning("%s: %d damaged packets were left out", name, damaged)
        if missing:
            logger.warning("%s: %.1f s of audio are missing; silence stands for them", name, missing)
        declared = _declared_seconds(stream, container) or 0.0
        if seconds and declared - seconds > _TRUNCATION_SECONDS:
            logger.warning("%s: its header promises %.1f s, only %.1f s are there", name, declared, seconds)


def _silence(seconds: float, rate: int, channels: int) -> Iterator[_Piece]:
    left = round(seconds * rate)
    while left > 0:
        samples = min(left, rate)
        yield np.zeros((channels, samples), np.float32), rate
        left -= samples


def _decoded_packets(container: av.container.InputContainer, stream: AudioStream) -> Iterator[list[AudioFrame] | None]:
    """The frames of each packet; None for a packet that cannot be decoded, after which FFmpeg goes on."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            yield None
            return
        try:
            yield packet.decode()
        except av.error.FFmpegError:
            yield None


def _frame_samples(frame: AudioFrame) -> FloatArray:
    array: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, frame.layout.nb_channels).T
    if array.dtype == np.uint8:
        return _from_integers(array.astype(np.int16) - 128 << 8)
    if np.issubdtype(array.dtype, np.signedinteger):
        return _from_integers(array)
    return array.astype(np.float32, copy=False)


def _from_integers(array: npt.NDArray[Any]) -> FloatArray:
    full_scale = -float(np.iinfo(array.dtype).min)
    return (array / full_scale).astype(np.float32)


def _raw_pieces(file: BinaryIO, format: RawFormat, name: str) -> Iterator[_Piece]:
    decoder = PcmDecoder(format)
    read_some = getattr(file, "read1", file.read)  # read1 gives what a pipe holds now, read waits for all
    while data := read_some(_READ_BYTES):
        yield decoder.push(data), format.sample_rate
    if decoder.buffered:
        logger.warning("%s: ends in the middle of a sample: is it %s?", name, format.encoding)


def _resampled(pieces: Iterable[_Piece], channels: Channels, sample_rate: int, name: str) -> Iterator[FloatArray]:
    resampler: Resampler | None = None
    seconds = 0.0
    for audio_CS, rate in pieces:
        if not audio_CS.shape[1]:
            continue
        _check_finite(audio_CS, name, seconds, rate)
        seconds += audio_CS.shape[1] / rate
        if channels == "mix":
            audio_CS = mix(audio_CS)
        if resampler is None or (rate, len(audio_CS)) != (resampler.from_rate, resampler.channels):
            if resampler is not None:
                if len(audio_CS) != resampler.channels:
                    raise AudioError(f"{name}: has {resampler.channels} channels, then {len(audio_CS)}: mix them")
                yield resampler.flush()
            resampler = Resampler(rate, sample_rate, len(audio_CS))
        if (ready := resampler.push(audio_CS)).size:
            yield ready
    if resampler is None:
        raise AudioError(f"{name}: holds no audio samples")
    yield resampler.flush()


def _check_rate(rate: int) -> None:
    if not 1_000 <= rate <= 768_000:
        raise AudioError(f"a sample rate of {rate} Hz: expected one between 1000 and 768000")


def _check_finite(audio_CS: npt.NDArray[Any], name: str, seconds: float = 0.0, rate: int = 0) -> None:
    finite = np.isfinite(audio_CS).all(axis=0)
    if finite.all():
        return
    first = int(np.argmin(finite))
    where = f"{seconds + first / rate:.3f} s" if rate else f"index {first}"
    raise AudioError(f"{name}: the sample at {where} is not a finite number")


def _decode_s24(data: npt.NDArray[np.uint8]) -> FloatArray:
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, 1:] = data.reshape(-1, 3)
    return _from_integers(wide.view("<i4")[:, 0])


def _mulaw_table() -> FloatArray:
    """G.711 mu-law, table 2a/2b: the bits inverted; sign, three bits of exponent, four of mantissa, bias 33 of 8192."""
    code = 255 - np.arange(256)
    magnitude = (((code & 15) * 8 + 132) << (code >> 4 & 7)) - 132
    return (np.where(code & 128, -magnitude, magnitude) / 32768).astype(np.float32)


def _alaw_table() -> FloatArray:
    """G.711 A-law, table 1a/1b: even bits inverted; the first of eight segments is linear, the next continues it."""
    code = np.arange(256) ^ 0x55
    segment = code >> 4 & 7
    magnitude: npt.NDArray[np.int64] = ((code & 15) * 16 + 8 + np.where(segment, 256, 0)) << np.maximum(segment - 1, 0)
    return (np.where(code & 128, magnitude, -magnitude) / 32768).astype(np.float32)


_MULAW, _ALAW = _mulaw_table(), _alaw_table()
_DECODE_PCM: dict[Encoding, Callable[[npt.NDArray[np.uint8]], FloatArray]] = {
    "pcm_s16le": lambda data: _from_integers(data.view("<i2")),
    "pcm_s24le": _decode_s24,
    "pcm_f32le": lambda data: data.view("<f4").astype(np.float32),
    "mulaw": lambda data: _MULAW[data],
    "alaw": lambda data: _ALAW[data],
}


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ImportError as error:
        raise AudioError('recording needs the extra "mic": pip install "slipstream-stt[mic]"') from error
    except OSError as error:
        raise AudioError(f"recording needs PortAudio (Debian, Ubuntu: apt install libportaudio2): {error}") from error
    module: ModuleType = sounddevice
    return module
