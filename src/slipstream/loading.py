"""`load` and `load_runner`: open a model by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slipstream.bundle import ModelBundle
from slipstream.hints import Hints
from slipstream.transcriber import Transcriber

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from slipstream.backends import KVCache, Progress, Quantize
    from slipstream.checkpoints.sources import Origin, Ref
    from slipstream.model.config import SamplingConfig
    from slipstream.model.runner import Runner


def load_runner(
    ref: Ref | ModelBundle = "tiny",
    *,
    device: str = "auto",
    backend: str = "auto",
    slots: int = 1,
    dtype: str = "auto",
    quantize: Quantize | None = None,
    threads: int | None = None,
    sampling: SamplingConfig | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    kv_cache: KVCache = "auto",
    **origin: Unpack[Origin],
) -> Runner:
    """Load a model as a `Runner`, for code that calls `step` itself; `load` returns a `Transcriber`.

    Args:
        ref: A folder, a repository id, a built-in name, the TOML file of a Rust server, or a `ModelBundle`.
        device: As for `load`.
        backend: As for `load`.
        slots: As for `load`.
        dtype: As for `load`.
        quantize: As for `load`.
        threads: As for `load`.
        sampling: How text tokens are chosen; the model's own configuration by default.
        seed: Seed of the sampler.
        progress: As for `load`.
        kv_cache: Format of the LM's keys and values on torch, `int8` or `auto`; see `ModelBundle.open`.
        **origin: As for `load`.

    Returns:
        The runner, which steps all its slots as one batch.

    Raises:
        BackendError: The backend or device is not available.
        ConfigError: A setting or the model's configuration is invalid.
        CheckpointError: A file cannot be found or read.

    Example:
        >>> runner = slipstream.load_runner("tiny", backend="onnx", slots=2)
    """
    return ModelBundle.resolve(ref, **origin).open(
        device=device,
        backend=backend,
        slots=slots,
        dtype=dtype,
        quantize=quantize,
        threads=threads,
        sampling=sampling,
        seed=seed,
        progress=progress,
        kv_cache=kv_cache,
    )


def load(
    model: Ref | ModelBundle = "tiny",
    *,
    device: str = "auto",
    backend: str = "auto",
    slots: int = 1,
    dtype: str = "auto",
    quantize: Quantize | None = None,
    threads: int | None = None,
    beam: int | None = None,
    progress: Progress | None = None,
    **origin: Unpack[Origin],
) -> Transcriber:
    """Load a model ready to transcribe `slots` concurrent recordings or streams.

    Args:
        model: A folder, a repository id, a built-in name, the TOML file of a Rust server, or a `ModelBundle`.
        device: `cpu`, `cuda`, `cuda:N`, `gpu` (CUDA or Apple silicon), or `auto`: a GPU if there is one, else the CPU.
        backend: `torch` (CPU and CUDA), `onnx` (CPU), `mlx` (Apple silicon), or `auto`.
        slots: Number of concurrent recordings. The model gets `slots * beam` slots; a stream takes one of them.
        dtype: Type of the LM's weights and keys: `float32`, `bfloat16` (torch and mlx), or `auto`.
        quantize: `int8`, `fp8` (torch), `int4` (onnx and mlx) or `none`, for the LM's weights; see `ModelBundle.open`.
        threads: CPU threads of onnx.
        beam: Hypotheses of each recording whose hints do not set them; None is the beam of the model: 2 for `tiny`, 1
            for the published ones. For live streams only, 1 saves slots and time.
        progress: Called as a model is converted, with the number of parameters that are done and their total.
        **origin: Where single parts come from: see `checkpoints.sources.resolve`.

    Returns:
        The transcriber. Close it, or use it as a context manager.

    Raises:
        BackendError: The backend or device is not available.
        ConfigError: A setting or the model's configuration is invalid.
        CheckpointError: A file cannot be found or read.

    Example:
        >>> with slipstream.load("kyutai/stt-1b-en_fr-candle", slots=4) as transcriber:
        ...     print(transcriber.transcribe("talk.mp3").text)
    """
    bundle = ModelBundle.resolve(model, **origin)
    beam = Hints(beam=beam).with_beam(bundle.config.beam).width
    runner = bundle.open(
        device=device,
        backend=backend,
        slots=slots * beam,
        dtype=dtype,
        quantize=quantize,
        threads=threads,
        progress=progress,
    )
    return Transcriber(
        runner,
        bundle.tokenizer,
        model=bundle.name,
        silence_prefix_seconds=bundle.silence_prefix_seconds,
        turns=bundle.turns,
        calibration=bundle.config.confidence,
        beam=beam,
    )
