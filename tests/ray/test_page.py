"""The page about Ray, run as written: its commands and programs in order, on this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="needs the extra ray: make ray")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "ray.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
PATIENCE = 240.0


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the application's route for health answers."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as client:
            client.settimeout(10)
            try:
                client.connect(("127.0.0.1", port))
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if client.recv(12) == b"HTTP/1.1 200":
                    return
            except OSError:
                pass
        time.sleep(0.2)
    raise AssertionError("the application did not start")


def test_the_page_runs_as_written(tmp_path: Path) -> None:
    for name in ("recordings/talk.opus", "examples/sample.opus", "a.mp3", "b.mp3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "examples" / "sample.opus", tmp_path / name)
    outputs: list[str] = []
    server: subprocess.Popen[bytes] | None = None
    try:
        for language, block in BLOCKS:
            if language == "python":
                named = re.match(r"# (\w+\.py)\n", block)
                file = tmp_path / (named[1] if named else "block.py")
                file.write_text(block, encoding="utf-8")
                if not named:
                    outputs.append(run([sys.executable, file.name], tmp_path))
                continue
            for command in map(shlex.split, block.splitlines()):
                if command[:2] == ["serve", "run"]:  # it runs until it is stopped
                    server = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True)
                    wait_for_port(server, 8000)
                elif command[0] != "pip":  # the environment of this test has the extra
                    outputs.append(run(command, tmp_path))
    finally:
        if server is not None:
            os.killpg(server.pid, signal.SIGINT)
            server.wait(PATIENCE)
    [row] = map(json.loads, (tmp_path / "transcripts.jsonl").read_text(encoding="utf-8").splitlines())
    words = row["text"].split()
    assert (row["id"], row["error"]) == (str(tmp_path / "recordings" / "talk.opus"), "")
    assert len(words) > 20
    _, dataset, text, stream = outputs
    assert sorted(dataset.splitlines()) == [f"{name} {row['text']}" for name in ("a.mp3", "b.mp3")]
    assert text.split() == words
    assert stream.split()[:10] == words[:10]  # it is sent at another sample rate, so a later word may differ
    assert len(stream.split()) > 20
