"""How a checkpoint is opened: when keys and values are kept in 8 bits."""

from __future__ import annotations

import logging

import pytest

torch = pytest.importorskip("torch")

import slipstream  # noqa: E402
from slipstream.backends.torch.opening import needs_int8  # noqa: E402
from slipstream.checkpoints.presets import PRESETS  # noqa: E402
from slipstream.errors import ConfigError  # noqa: E402


def test_keys_and_values_are_in_8_bits_when_they_would_not_fit_otherwise(caplog: pytest.LogCaptureFixture):
    config, free = PRESETS["kyutai/stt-1b-en_fr"], 81 * 10**9
    with caplog.at_level(logging.INFO):
        assert [needs_int8(config, slots, free, 2) for slots in (64, 640, 1200)] == [False, False, True]
    assert "1200 slots need 130.9 GB" in caplog.text


def test_the_format_can_be_chosen():
    assert slipstream.load_runner("tiny", backend="torch", kv_cache="int8")._formats["lm"].int8
    with pytest.raises(ConfigError, match="only the torch backend has it, not onnx"):
        slipstream.load_runner("tiny", backend="onnx", kv_cache="int8")
    with pytest.raises(ConfigError, match="expected auto or int8"):
        slipstream.load_runner("tiny", backend="torch", kv_cache="int2")


def test_weights_in_8_bits_run():
    assert slipstream.load_runner("tiny", backend="torch", quantize="int8").slots == 1
