"""The backends that the laws run on. Each function creates a Runner with random weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
from tests.models import random_model

from slipstream.model.config import STTConfig
from slipstream.model.runner import Runner

MakeRunner = Callable[..., Runner]


def torch_runner(config: STTConfig, *, slots: int, seed: int = 0) -> Runner:
    from slipstream.backends.torch.runner import TorchRunner
    from slipstream.nn.build import build_codec, build_lm

    lm, codec = random_model(config, seed)
    return TorchRunner(config, build_codec(config.codec, codec), build_lm(config.lm, lm), slots=slots)


def bucketed_torch_runner(config: STTConfig, *, slots: int, seed: int = 0) -> Runner:
    """A bucket for every number of slots, so that the active slots decide which one runs."""
    from slipstream.backends.torch.runner import TorchRunner
    from slipstream.nn.build import build_codec, build_lm

    lm, codec = random_model(config, seed)
    buckets = range(1, slots + 1)
    return TorchRunner(config, build_codec(config.codec, codec), build_lm(config.lm, lm), slots=slots, buckets=buckets)


def int8_torch_runner(config: STTConfig, *, slots: int, seed: int = 0) -> Runner:
    """The LM's keys and values in 8 bits."""
    from slipstream.backends.torch.runner import TorchRunner
    from slipstream.nn.build import build_codec, build_lm
    from slipstream.nn.ring import RingFormat

    lm, codec = random_model(config, seed)
    modules = build_codec(config.codec, codec), build_lm(config.lm, lm)
    return TorchRunner(config, *modules, slots=slots, buckets=range(1, slots + 1), rings=RingFormat(int8=True))


def onnx_runner(config: STTConfig, *, slots: int, seed: int = 0) -> Runner:
    from slipstream.backends.onnx.runner import OnnxRunner

    return OnnxRunner(config, *random_model(config, seed), slots=slots, threads=1)


def mlx_runner(config: STTConfig, *, slots: int, seed: int = 0) -> Runner:
    from slipstream.backends.mlx.runner import MLXRunner

    return MLXRunner(config, *random_model(config, seed), slots=slots)


def _needs(package: str, extra: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"pip install 'slipstream-stt[{extra}]'")


BACKENDS = [
    pytest.param(torch_runner, id="torch", marks=_needs("torch", "torch")),
    pytest.param(bucketed_torch_runner, id="torch-buckets", marks=_needs("torch", "torch")),
    pytest.param(int8_torch_runner, id="torch-int8", marks=_needs("torch", "torch")),
    pytest.param(onnx_runner, id="onnx"),
    pytest.param(mlx_runner, id="mlx", marks=_needs("mlx", "mlx")),
]

ROUNDED = {int8_torch_runner}
"""Those that round what they keep, so that a stream only nearly equals the whole sequence."""
