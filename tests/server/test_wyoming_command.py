"""`slipstream wyoming` and `slipstream serve --wyoming`, as processes."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(params=["wyoming --uri tcp://127.0.0.1:0", "serve --port 0 --wyoming 127.0.0.1:0"])
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "slipstream", *request.param.split(), "--slots", "1", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def test_the_built_in_model_describes_itself_and_stops_cleanly(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    seen = ""
    while not (found := re.search(r"on tcp://127\.0\.0\.1:(\d+)", seen)):
        line = process.stderr.readline()
        assert line, f"the server ended: {seen}"
        seen += line
    with socket.create_connection(("127.0.0.1", int(found[1])), timeout=30) as connection:
        connection.sendall(b'{"type": "describe"}\n')
        answer = connection.makefile("rb")
        head = json.loads(answer.readline())
        info = json.loads(answer.read(head["data_length"]))
    assert info["asr"][0]["models"][0]["name"] == "tiny"
    assert info["asr"][0]["models"][0]["languages"] == ["en", "fr"]
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("wyoming --uri tcp://0.0.0.0:0", "--uri: 0.0.0.0 can be reached from other machines"),
        ("wyoming --uri 127.0.0.1:10300", "--uri 127.0.0.1:10300: expected tcp://HOST:PORT"),
        ("wyoming --uri tcp://127.0.0.1", "--uri 127.0.0.1: expected HOST:PORT"),
        ("wyoming --uri tcp://127.0.0.1:port", "--uri 127.0.0.1:port: expected HOST:PORT"),
        ("serve --port 0 --wyoming [::]:0", "--wyoming: :: can be reached from other machines"),
        ("serve --port 0 --wyoming user@127.0.0.1:0/x", "expected HOST:PORT"),
    ],
)
def test_a_wrong_address_is_one_message(command: str, says: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "slipstream", *command.split()], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert says in re.sub(r"\s+", " ", run.stderr)
