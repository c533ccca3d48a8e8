"""A model by name: where its files, a backend and a device meet."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import platform
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slipstream.checkpoints.checkpoint import Checkpoint, load_checkpoint
from slipstream.checkpoints.sources import Origin, Ref, Sources, resolve
from slipstream.engine.turns import TurnOptions
from slipstream.errors import BackendError, CheckpointError, ConfigError
from slipstream.model.config import SamplingConfig, STTConfig
from slipstream.model.text import Tokenizer
from slipstream.transcriber import Transcriber

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from slipstream.model.runner import Runner

Progress = Callable[[int, int], None]
"""Called with how many parameters are converted, and of how many."""

BACKENDS = ("torch", "onnx", "mlx")
QUANTIZE_ABOVE = 100_000_000
"""Parameters of an LM above which the CPU backend keeps int8 weights by default; smaller ones gain little."""


def load_runner(
    ref: Ref = "tiny",
    *,
    device: str = "auto",
    backend: str = "auto",
    slots: int = 1,
    dtype: str = "auto",
    quantize: Literal["int8", "int4", "none"] | None = None,
    threads: int | None = None,
    sampling: SamplingConfig | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    **origin: Unpack[Origin],
) -> Runner:
    """Load a model as a Runner, for code that steps it itself; `load` gives a `Transcriber`.

    Args:
        ref: a folder, a repository id or a built-in name; `origin` says where single parts come from (`resolve`).
        device: `cpu`, `cuda`, `cuda:N`, `gpu` (CUDA or Apple silicon), or `auto`: a GPU if there is one, else the CPU.
        backend: `torch` (CPU and CUDA), `onnx` (CPU), `mlx` (Apple silicon), or `auto`.
        slots: how many streams it steps at once.
        dtype: of the LM's weights and keys: `float32`, `bfloat16` (torch and mlx), or `auto`: the published `bfloat16`
            on CUDA and Apple silicon, else `float32`.
        quantize: keep the LM's weights in 8 or 4 bits (onnx and mlx). On onnx a large LM is kept in int8 unless this is
            `none`.
        threads: of the processor, for onnx.
        sampling: greedy unless the model or the caller says otherwise.

    Raises:
        BackendError: for a backend or device that this installation or machine lacks.
        ConfigError: for a setting that the backend does not have.
        CheckpointError: as `load_checkpoint` does, and where model and tokenizer do not belong together.
    """
    sources = resolve(ref, **origin)
    load_tokenizer(sources)
    return open_model(
        sources,
        partial(load_checkpoint, ref, **origin),
        backend=backend,
        device=device,
        slots=slots,
        dtype=dtype,
        quantize=quantize,
        threads=threads,
        sampling=sampling,
        seed=seed,
        progress=progress,
    )


def load(
    model: Ref = "tiny",
    *,
    device: str = "auto",
    backend: str = "auto",
    slots: int = 1,
    dtype: str = "auto",
    quantize: Literal["int8", "int4", "none"] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **origin: Unpack[Origin],
) -> Transcriber:
    """Load a model ready to transcribe `slots` streams at once. Arguments and errors are those of `load_runner`.

    Example:
        >>> with slipstream.load("kyutai/stt-1b-en_fr-candle", slots=4) as transcriber:
        ...     print(transcriber.transcribe("talk.mp3").text)
    """
    sources = resolve(model, **origin)
    tokenizer = load_tokenizer(sources)
    runner = open_model(
        sources,
        partial(load_checkpoint, model, **origin),
        backend=backend,
        device=device,
        slots=slots,
        dtype=dtype,
        quantize=quantize,
        threads=threads,
        progress=progress,
    )
    return Transcriber(
        runner,
        tokenizer,
        model=os.fspath(model),
        silence_prefix_seconds=sources.config.silence_prefix_seconds,
        turns=TurnOptions.of(sources.config),
    )


def load_tokenizer(sources: Sources) -> Tokenizer:
    """Load a checkpoint's tokenizer. Raises `CheckpointError` where it has fewer tokens than the model writes."""
    tokenizer = Tokenizer(sources.tokenizer)
    if tokenizer.vocab_size < sources.config.lm.text_vocab:
        raise CheckpointError(
            f"{sources.tokenizer} has {tokenizer.vocab_size} tokens, but the model writes "
            f"{sources.config.lm.text_vocab}: the two do not belong together"
        )
    return tokenizer


def open_model(
    sources: Sources,
    load: Callable[..., Checkpoint],
    *,
    backend: str = "auto",
    device: str = "auto",
    slots: int = 1,
    dtype: str = "auto",
    quantize: Literal["int8", "int4", "none"] | None = None,
    threads: int | None = None,
    sampling: SamplingConfig | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Runner:
    """`load_runner` for sources that are resolved already. `load`: `load_checkpoint` of them, if tensors are needed."""
    backend, device = choose(device, backend)
    if dtype == "auto":
        dtype = "bfloat16" if backend == "mlx" or device.startswith("cuda") else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype={dtype!r}: expected auto, float32 or bfloat16")
    if quantize not in (None, "none", "int8", "int4"):
        raise ConfigError(f"quantize={quantize!r}: expected int8, int4 or none")
    common: dict[str, Any] = {"slots": slots, "sampling": sampling, "seed": seed}
    if backend == "torch":
        if quantize not in (None, "none"):
            raise ConfigError(f"quantize={quantize!r}: the torch backend does not quantise; onnx and mlx do")
        return _torch(sources.config, load(), device, dtype, common)
    if backend == "mlx":
        bits = {"int8": 8, "int4": 4}.get(quantize or "none")
        from slipstream.backends.mlx.runner import MLXRunner

        checkpoint = load(keep_quantized=True)
        return MLXRunner(sources.config, checkpoint.lm, checkpoint.codec, dtype=dtype, quantize=bits, **common)
    if dtype != "float32":
        raise ConfigError(f"dtype={dtype!r}: the onnx backend has float32; for less memory use quantize='int8'")
    return _onnx(sources, load, quantize, progress, common | {"threads": threads})


def choose(device: str = "auto", backend: str = "auto") -> tuple[str, str]:
    """Choose the backend and device for what was asked: the fastest that this machine and installation have.

    CUDA with torch comes first, then Apple silicon with MLX; `auto` takes the CPU with ONNX Runtime where there is
    neither, `gpu` raises.

    Raises:
        ConfigError: for an unknown backend.
        BackendError: for an unknown device, a backend that is not installed or does not run on the device, and for
            `gpu` where there is none.
    """
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(f"backend={backend!r}: expected auto, {', '.join(BACKENDS)}")
    if not re.fullmatch(r"auto|cpu|gpu|mps|metal|cuda(:\d+)?", device):
        raise BackendError(f"device={device!r}: expected auto, cpu, gpu, cuda or cuda:N")
    if backend != "auto":
        require(backend)
    if device.startswith("cuda"):
        if backend not in ("auto", "torch"):
            raise BackendError(f"device={device!r}: the {backend} backend has no CUDA; use backend='torch' for CUDA")
        require("torch")
        return "torch", device
    wanted = {"gpu": ("cuda", "gpu"), "mps": ("gpu",), "metal": ("gpu",)}.get(device, (device,))
    available = _available()
    for has_backend, has_device in available:
        if backend in ("auto", has_backend) and (device == "auto" or has_device in wanted):
            return has_backend, has_device
    there = ", ".join(f"{has_device} ({has_backend})" for has_backend, has_device in available)
    asked = f"device={device!r}" + ("" if backend == "auto" else f" with backend={backend!r}")
    raise BackendError(f"{asked}: not on this machine; available: {there}")


def _available() -> list[tuple[str, str]]:
    """The installed backends with their devices, the fastest first."""
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    found = [("torch", "cuda")] if has("torch") and _has_cuda() else []
    if has("mlx") and apple:
        found.append(("mlx", "gpu"))
    found.append(("onnx", "cpu"))
    if has("torch"):
        found.append(("torch", "cpu"))
    if has("mlx") and not apple:
        found.append(("mlx", "cpu"))
    return found


def has(backend: str) -> bool:
    """Whether the package that a backend needs is installed."""
    package = {"onnx": "onnxruntime", "torch": "torch", "mlx": "mlx"}[backend]
    return importlib.util.find_spec(package) is not None


def require(backend: str) -> None:
    """Raise `BackendError` that names the command to install what a backend needs, unless it is there."""
    if not has(backend):
        extra = "" if backend == "onnx" else f"[{backend}]"
        raise BackendError(f"the {backend} backend is not installed: pip install 'slipstream-stt{extra}'")


def cache_root() -> Path:
    """Where converted models are kept: `SLIPSTREAM_CACHE`, or `slipstream` in the user's cache folder."""
    if (named := os.environ.get("SLIPSTREAM_CACHE")) is not None:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "slipstream"


def _has_cuda() -> bool:
    try:
        # Without the driver there is no need to ask torch, whose import takes longer than the small model's whole work.
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


def _torch(config: STTConfig, checkpoint: Checkpoint, device: str, dtype: str, options: dict[str, Any]) -> Runner:
    import torch

    from slipstream.backends.torch.build import build_codec, build_lm
    from slipstream.backends.torch.runner import TorchRunner

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"device={device!r}: torch {torch.__version__} cannot use it: {reason}") from error
    codec = build_codec(config.codec, checkpoint.codec, device=device)
    lm = build_lm(config.lm, checkpoint.lm, device=device, dtype=getattr(torch, dtype))
    return TorchRunner(config, codec, lm, **options)


def _onnx(
    sources: Sources,
    load: Callable[[], Checkpoint],
    quantize: str | None,
    progress: Progress | None,
    options: dict[str, Any],
) -> Runner:
    from slipstream.backends.onnx.export import CODEC_FILE, LM_FILE, cache_folder, export
    from slipstream.backends.onnx.runner import OnnxRunner

    config = sources.config
    if sources.lm[0].suffix == ".onnx":
        if quantize is not None:
            raise ConfigError(f"quantize={quantize!r}: {sources.lm[0]} is converted already, with the weights it has")
        return OnnxRunner(config, sources.lm[0], sources.codec[0], **options)
    large = _parameters(config) > QUANTIZE_ABOVE
    default = "int8" if large or config.codec.whisper else None
    bits: Any = default if quantize is None else None if quantize == "none" else quantize
    if not large:
        checkpoint = load()
        return OnnxRunner(config, checkpoint.lm, checkpoint.codec, quantize=bits, **options)
    folder = cache_folder(cache_root() / "onnx", sources, bits)
    export(load, folder, quantize=bits, progress=progress)
    return OnnxRunner(config, folder / LM_FILE, folder / CODEC_FILE, **options)


def _parameters(config: STTConfig) -> int:
    from slipstream.model.names import lm_shapes

    return sum(math.prod(shape) for shape in lm_shapes(config.lm).values())
