"""Clients that request a text delay, on a server whose model has several."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from tests.models import random_model, stt_config
from tests.server.harness import Running, serving, wait_for
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.testing import tiny_tokenizer


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    config = stt_config(text_vocab=tiny_tokenizer().vocab_size)
    lm, codec = random_model(config)
    with serving(OnnxRunner(config, lm, codec, slots=4, threads=1)) as running:  # type: ignore[arg-type]
        yield running


def first_message(server: Running, path: str, *sent: str) -> Any:
    async def talk() -> Any:
        async with asyncio.timeout(20), connect(server.ws + path) as socket:
            for message in sent:
                await socket.send(message)
            return json.loads(await socket.recv())

    return asyncio.run(talk())


def test_a_delay_of_the_model(server: Running) -> None:
    assert first_message(server, "/v1/stream?delay=1.6")["delay"] == 1.6
    setup = json.dumps({"type": "setup", "input_format": "pcm", "json_config": {"delay_in_frames": 20}})
    assert first_message(server, "/api/speech/asr", setup)["delay_in_tokens"] == 20


def test_a_delay_that_the_model_cannot_have(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "slipstream"):
        for _ in range(5):  # more than there are slots
            error = first_message(server, "/v1/stream?delay=0.01")
            assert error == {"type": "error", "message": "delay=0.01: expected at least 0.08 seconds", "code": 1007}
        for delay, problem in (("11", "up to 10 seconds"), ("-1", "above 0"), ("soon", "expected a number of seconds")):
            with pytest.raises(InvalidStatus) as refused:
                first_message(server, f"/v1/stream?delay={delay}")
            assert refused.value.response.status_code == 400
            assert problem in (refused.value.response.body or b"").decode()
    assert not caplog.records
    wait_for(lambda: server.engine.active == 0)
