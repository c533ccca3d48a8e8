"""`load` and `load_runner`: open a model by name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from slipstream.bundle import ModelBundle
from slipstream.errors import ConfigError
from slipstream.hints import Hints
from slipstream.transcriber import Transcriber

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from slipstream.backends import KVCache, Progress, Quantize
    from slipstream.checkpoints.sources import Origin, Ref
    from slipstream.model.config import SamplingConfig
    from slipstream.model.runner import Runner

Mode = Literal["auto", "live", "recordings"]
"""What a model is loaded for, where it has another lookahead for recordings (`stt_config.recordings`)."""


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

    It has the lookahead of live streams; for that of recordings, pass `ModelBundle.resolve(ref).for_recordings()`.

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
    mode: Mode = "auto",
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
        mode: Which lookahead is used, for a model that has a larger one for recordings (`stt_config.recordings` in its
            `config.json`); for others all modes are the same. `live`: that of live streams, also for recordings.
            `recordings`: the larger one, also for streams, whose words then come later. `auto`: streams and sessions
            have the first, `transcribe` and `transcribe_many` the second, whose runner is opened at their first call.
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
    if mode not in get_args(Mode):
        raise ConfigError(f"mode={mode!r}: expected {', '.join(get_args(Mode))}")
    bundle = ModelBundle.resolve(model, **origin)
    if mode == "recordings":
        bundle = bundle.for_recordings()
    beam = Hints(beam=beam).with_beam(bundle.config.beam).width

    def open_runner(bundle: ModelBundle) -> Runner:
        return bundle.open(
            device=device,
            backend=backend,
            slots=slots * beam,
            dtype=dtype,
            quantize=quantize,
            threads=threads,
            progress=progress,
        )

    other = mode == "auto" and bundle.config.recordings is not None
    return Transcriber(
        open_runner(bundle),
        bundle.tokenizer,
        model=bundle.name,
        silence_prefix_seconds=bundle.silence_prefix_seconds,
        turns=bundle.turns,
        calibration=bundle.config.confidence,
        beam=beam,
        open_recordings=partial(open_runner, bundle.for_recordings()) if other else None,
    )
