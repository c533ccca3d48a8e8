"""`ModelBundle`: a model whose configuration, weights, tokenizer and defaults are resolved once."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from slipstream.backends import BACKENDS, KVCache, Progress, Quantize, RunnerOptions
from slipstream.backends.choice import choose
from slipstream.checkpoints.checkpoint import Checkpoint, read_checkpoint
from slipstream.checkpoints.sources import Origin, Ref, Sources, resolve, resolve_files
from slipstream.engine.engine import Engine, StepReport
from slipstream.engine.options import StreamFormat
from slipstream.engine.turns import TurnOptions
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import SamplingConfig, STTConfig
from slipstream.model.runner import Runner
from slipstream.model.text import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from slipstream.checkpoints.rust import RustConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelBundle:
    """A model ready to be opened: its configuration, its files on this machine and its defaults.

    `load`, `load_runner`, `convert` and the commands resolve a bundle from what the user names, or take one.

    Attributes:
        name: What the user called the model, for transcripts and messages.
        sources: The configuration and the files.
        dtype: Type of the LM's weights where the user chooses none.

    Example:
        >>> bundle = ModelBundle.resolve("kyutai/stt-1b-en_fr-candle")
        >>> bundle.config.delay_seconds
        0.5
        >>> runner = bundle.open(device="cpu", slots=4)
    """

    name: str
    sources: Sources
    dtype: str = "auto"

    @classmethod
    def resolve(cls, model: Ref | ModelBundle, **origin: Unpack[Origin]) -> ModelBundle:
        """Find the files of a model; download what is not in the cache of the Hugging Face Hub.

        Args:
            model: A folder, a repository id, a built-in name, the TOML file of a Rust server, or a bundle, which is
                returned as it is.
            **origin: Where single parts come from: see `checkpoints.sources.resolve`.

        Returns:
            The bundle.

        Raises:
            CheckpointError: A file cannot be found or fetched.
            ConfigError: The configuration is wrong, or parts are given for a bundle or a TOML file.
        """
        is_toml = not isinstance(model, ModelBundle) and Path(model).suffix == ".toml" and Path(model).is_file()
        if origin and (is_toml or isinstance(model, ModelBundle)):
            raise ConfigError(f"{', '.join(origin)}: the parts of a resolved model or of a TOML file are fixed")
        if isinstance(model, ModelBundle):
            return model
        if is_toml:
            from slipstream.checkpoints.rust import read_rust_config

            return cls.of_rust(read_rust_config(Path(model)))
        return cls(os.fspath(model), resolve(model, **origin))

    @classmethod
    def of_rust(cls, rust: RustConfig) -> ModelBundle:
        """Return the model that a configuration of the Rust server describes.

        Args:
            rust: The configuration.

        Raises:
            CheckpointError: As for `resolve`.
            ConfigError: As for `resolve`.
        """
        sources = resolve_files(rust.model, lm=rust.lm_file, codec=rust.codec_file, tokenizer=rust.tokenizer_file)
        return cls(rust.lm_file, sources, rust.dtype)

    @property
    def config(self) -> STTConfig:
        """The model's configuration."""
        return self.sources.config

    @property
    def silence_prefix_seconds(self) -> float:
        """Silence that the model needs before speech."""
        return self.config.silence_prefix_seconds

    @cached_property
    def turns(self) -> TurnOptions:
        """When a turn ends, for sessions without their own `TurnOptions`."""
        return TurnOptions.of(self.config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises `CheckpointError` if it has fewer tokens than the model can write."""
        tokenizer = Tokenizer(self.sources.tokenizer)
        if tokenizer.vocab_size < self.config.lm.text_vocab:
            raise CheckpointError(
                f"{self.sources.tokenizer} has {tokenizer.vocab_size} tokens, but the model writes "
                f"{self.config.lm.text_vocab}: the tokenizer belongs to another model"
            )
        return tokenizer

    def stream_format(self) -> StreamFormat:
        """Return what all its sessions share: frames, delay, tokenizer, silence prefix, turns and calibration."""
        config = self.config
        return StreamFormat(
            tokenizer=self.tokenizer,
            frame_samples=config.codec.frame_samples,
            frame_rate=config.codec.frame_rate,
            delay_frames=config.delay_frames,
            silence_frames=math.ceil(self.silence_prefix_seconds * config.codec.frame_rate),
            turns=self.turns,
            calibration=config.confidence,
            config=config,
        )

    def uncalibrated(self) -> ModelBundle:
        """Return the same model without its calibration: words have the confidence that the model itself gives."""
        return self._with(self.config.model_copy(update={"confidence": None}))

    def for_recordings(self) -> ModelBundle:
        """Return the same model with the lookahead and delay of recordings; itself if it has no other for them."""
        return self if self.config.recordings is None else self._with(self.config.for_recordings())

    def _with(self, config: STTConfig) -> ModelBundle:
        return replace(self, sources=replace(self.sources, config=config))

    def checkpoint(self, *, keep_quantized: bool = False) -> Checkpoint:
        """Read the tensors.

        Args:
            keep_quantized: Keep 8-bit weights as they are, instead of turning them into floats.

        Returns:
            The configuration and the tensors under canonical names.

        Raises:
            CheckpointError: The weights cannot be read, or do not fit the configuration.
        """
        return read_checkpoint(self.sources, keep_quantized=keep_quantized)

    def open(
        self,
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
    ) -> Runner:
        """Load the weights with a backend.

        Args:
            device: `cpu`, `cuda`, `cuda:N`, `gpu` (CUDA or Apple silicon), or `auto`: a GPU if there is one, else the
                CPU.
            backend: `torch` (CPU and CUDA), `onnx` (CPU), `mlx` (Apple silicon), or `auto`.
            slots: Number of concurrent streams.
            dtype: Type of the LM's weights and keys: `float32`, `bfloat16` (torch and mlx), or `auto`: `bfloat16` on
                CUDA and Apple silicon, else `float32`.
            quantize: Format of the LM's weights: `int8`, `int4` (onnx and mlx), `fp8` (torch) or `none`. The default is
                the checkpoint's own on mlx, and `int8` for a large LM on onnx.
            threads: CPU threads of onnx.
            sampling: How text tokens are chosen; the model's own configuration by default.
            seed: Seed of the sampler.
            progress: Called as a model is converted, with the number of parameters that are done and their total.
            kv_cache: Format of the LM's keys and values on torch: `int8`, or `auto`: the type of the weights, or
                `int8` on CUDA if the slots would not fit into memory otherwise.

        Returns:
            The runner, which steps all its slots as one batch.

        Raises:
            BackendError: The backend or device is not available.
            ConfigError: A setting is unknown, or the backend does not have it.
            CheckpointError: The weights cannot be read, or do not fit the configuration or the tokenizer.
        """
        backend, device = choose(device, backend)
        if dtype == "auto" and self.dtype in ("auto", *BACKENDS[backend].dtypes):
            dtype = self.dtype
        elif dtype == "auto":
            logger.warning("%s asks for %s, which the %s backend does not have", self.name, self.dtype, backend)
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype={dtype!r}: expected auto, float32 or bfloat16")
        if quantize not in (None, *get_args(Quantize)):
            raise ConfigError(f"quantize={quantize!r}: expected int8, fp8, int4 or none")
        if kv_cache not in get_args(KVCache):
            raise ConfigError(f"kv_cache={kv_cache!r}: expected auto or int8")
        if backend != "torch" and (quantize == "fp8" or kv_cache != "auto"):
            setting = f"quantize={quantize!r}" if quantize == "fp8" else f"kv_cache={kv_cache!r}"
            raise ConfigError(f"{setting}: only the torch backend has it, not {backend}")
        _ = self.tokenizer  # a tokenizer of another model is an error before the weights are read
        options = RunnerOptions(device, slots, dtype, quantize, threads, sampling, seed, progress, kv_cache)
        return BACKENDS[backend].open(self.sources, partial(read_checkpoint, self.sources), options)

    def engine(
        self, runner: Runner, *, max_waiting: int = 64, observer: Callable[[StepReport], None] | None = None
    ) -> Engine:
        """Start an engine on a runner of this model, with the model's tokenizer and defaults.

        Args:
            runner: What `open` returned.
            max_waiting: Number of sessions that may wait for a slot.
            observer: Called after each step, with what it cost.

        Returns:
            The engine, whose thread owns the runner.
        """
        return Engine(
            runner,
            self.tokenizer,
            silence_prefix_seconds=self.silence_prefix_seconds,
            turns=self.turns,
            calibration=self.config.confidence,
            max_waiting=max_waiting,
            observer=observer,
        )
