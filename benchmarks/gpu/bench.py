"""The model under test, with random weights."""

from __future__ import annotations

import argparse
import copy
import gc
import math
import platform
from collections.abc import Callable, Sequence

import numpy as np
import torch
from benchmarks.common import Row
from benchmarks.gpu.bounds import Device
from benchmarks.gpu.peer import Moshi
from torch import nn

from slipstream.arrays import FloatArray
from slipstream.backends.torch.runner import SlotState, TorchRunner
from slipstream.backends.torch.weights import quantise_weights
from slipstream.checkpoints.presets import PRESETS
from slipstream.model.capacity import stream_bytes
from slipstream.model.config import STTConfig
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Codebook, Mimi
from slipstream.nn.ring import RingFormat
from slipstream.testing import small_config


class Bench:
    """The model under test, and what all parts share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.dtype: torch.dtype = getattr(torch, options.dtype)
        self.config = small_config(conditioners=()) if options.model == "small" else PRESETS[options.model]
        self.codec, self.lm = random_codec(self.config, self.device), random_lm(self.config, self.device)
        self.lm_f32 = self.lm
        if self.dtype != torch.float32:
            # A copy costs memory: make it only if a part compares the two.
            self.lm_f32 = copy.deepcopy(self.lm) if "correctness" in options.parts else self.lm
            self.lm = self.lm.to(self.dtype)
        if options.weights != "none":
            quantise_weights(self.lm.transformer, options.weights)
        self.best = Device(options.bandwidth, options.lm_rate, options.codec_rate)
        self._full: SlotState | None = None

    @property
    def about(self) -> Row:
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else platform.processor() or "cpu",
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "MB of rings per stream": stream_bytes(self.config, self.lm.text_linear.weight.element_size()) / 1e6,
        }

    def runner(self, slots: int, buckets: Sequence[int] | None = None) -> TorchRunner:
        options = self.options
        rings = RingFormat(int8=options.kv_cache == "int8")
        return TorchRunner(
            self.config, self.codec, self.lm, slots=slots, buckets=buckets, tf32=options.tf32, rings=rings,
            kernels=None if options.kernels else False,
        )  # fmt: skip

    def full_runner(self, slots: int, buckets: Sequence[int] | None = None) -> TorchRunner:
        """Create a runner whose streams are all past their context."""
        if self._full is None:
            one = self.runner(1)
            pcm_BS = noise(1, self.config)
            for _ in range(positions(self.config)):
                one.step(pcm_BS, np.ones(1, np.bool_))
            self._full = one.snapshot(0)
        runner = self.runner(slots, buckets)
        for slot in range(slots):
            runner.restore(slot, self._full)
        return runner

    def clear(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> float | None:
        """Peak GB reserved by the device's allocator since `clear`; None on the CPU."""
        return torch.cuda.max_memory_reserved(self.device) / 1e9 if self.device.type == "cuda" else None

    def contenders(self) -> list[tuple[str, Callable[[int], Callable[[], object]]]]:
        """The packages to compare: a name, and a function that returns a step of N streams past their context."""

        def ours(streams: int) -> Callable[[], object]:
            runner, active_B = self.full_runner(streams, (streams,)), np.ones(streams, np.bool_)
            pcm_BS = noise(streams, self.config)
            return lambda: runner.step(pcm_BS, active_B)

        def theirs(streams: int) -> Callable[[], object]:
            peer = Moshi(self.config, self.device, self.dtype, streams)
            peer.fill()
            pcm_BS, active_B = noise(streams, self.config), np.ones(streams, np.bool_)
            return lambda: peer.step(pcm_BS, active_B)

        return [("slipstream", ours), *([("moshi", theirs)] if self.options.peer else [])]


def random_codec(config: STTConfig, device: torch.device) -> Mimi:
    with torch.device("meta"):
        codec = Mimi(config.codec)
    fresh_mel = Mimi(config.codec).mel if config.codec.mel else None
    codec = codec.to_empty(device=device).eval()
    if fresh_mel is not None:
        codec.mel = fresh_mel.to(device)
    randomise(codec)
    for module in codec.modules():
        if isinstance(module, Codebook):
            module.refresh()
    return codec.requires_grad_(False)


def random_lm(config: STTConfig, device: torch.device) -> LM:
    with torch.device("meta"):
        lm = LM(config.lm)
    lm = lm.to_empty(device=device).eval()
    randomise(lm)
    return lm.requires_grad_(False)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Set weights that keep each layer's output about as large as its input, and make tokens vary."""
    for name, tensor in module.state_dict().items():
        if name.endswith("cluster_usage"):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith(("embedding_sum", "_emb.weight", "learnt_padding")):
            tensor.normal_()
        elif tensor.dim() == 1:
            tensor.fill_(0.3 if name.endswith(("scale1", "scale2")) else float(name.endswith("weight")))
        else:
            gain = 3.0 if name.startswith(("text_linear", "pause_heads")) else 1.5
            tensor.normal_(0, gain / math.sqrt(math.prod(tensor.shape[1:])))


def noise(streams: int, config: STTConfig, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, (streams, config.codec.frame_samples)).astype(np.float32)


def positions(config: STTConfig) -> int:
    """Frames after which every ring is full."""
    return max(config.lm.transformer.context, math.ceil(config.codec.transformer.context / config.codec.stride)) + 1
