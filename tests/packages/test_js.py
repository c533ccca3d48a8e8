"""The npm package, in Node: its modules on the page are built from its sources, and its client transcribes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import LEXICON, ScriptRunner, silence, sound_of
from tests.server.harness import serving, solo

from slipstream.connections.keys import KeyRing
from slipstream.connections.limits import Limits

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "packages" / "js"
BUILT = ROOT / "src" / "slipstream" / "server" / "page" / "slipstream"
HEADER = re.compile(r'// Built by "npm run build" from (packages/js/src/\w+\.ts): edit that file\. ([0-9a-f]{64})\n')


def node_command() -> list[str]:
    """How to run Node with a WebSocket, or an empty list. Node 20 has it behind an option."""
    node = shutil.which("node")
    version = subprocess.check_output([node, "--version"], text=True) if node else "v0.0"
    major, minor = map(int, version.strip().lstrip("v").split(".")[:2])
    if (major, minor) >= (22, 7):
        return [str(node)]
    return [str(node), "--experimental-websocket"] if major == 20 and minor >= 19 else []


NODE = node_command()
needs_node = pytest.mark.skipif(not NODE, reason="no Node 20.19, 22.7 or later")


def test_the_modules_of_the_page_are_those_of_the_sources() -> None:
    assert {file.stem for file in BUILT.iterdir()} == {file.stem for file in (PACKAGE / "src").iterdir()}
    for file in BUILT.iterdir():
        text = file.read_text(encoding="utf-8")
        header = HEADER.match(text)
        assert header is not None, file.name
        source = (ROOT / header[1]).read_text(encoding="utf-8")
        digest = hashlib.sha256(f"{source}\0{text[header.end() :]}".encode()).hexdigest()
        assert digest == header[2], f"{header[1]} or {file.name} was edited: run `npm run build` in packages/js"


@needs_node
@pytest.mark.skipif(not (PACKAGE / "node_modules").exists(), reason="no TypeScript: npm install in packages/js")
def test_a_build_writes_the_same_modules() -> None:
    result = subprocess.run([NODE[0], str(PACKAGE / "build.mjs"), "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def run_tests(name: str, **environment: str) -> None:
    command = [*NODE, "--test", "--test-reporter=tap", str(PACKAGE / "test" / name)]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "# skipped 0" in result.stdout


@needs_node
def test_units() -> None:
    run_tests("units.test.mjs")


@needs_node
def test_a_client_with_live_servers(tmp_path: Path) -> None:
    texts = [LEXICON[index % 7] for index in range(40)]
    pieces = [piece for text in texts for piece in (sound_of(text, 4), silence(4))]
    pieces.insert(40, silence(30))
    audio_S = np.concatenate(pieces)
    audio_S.tofile(tmp_path / "audio.f32")
    words = [{"text": word.text, "start": word.start, "end": word.end} for word in solo(audio_S)]
    assert [word["text"] for word in words] == texts
    with ExitStack() as stack:
        servers = {
            "open": serving(),
            "slow": serving(ScriptRunner(slots=2, step_seconds=0.003), limits=Limits(buffered_seconds=2)),
            "holding": serving(
                ScriptRunner(slots=2, step_seconds=0.003), limits=Limits(buffered_seconds=2), resume_seconds=20
            ),
            "full": serving(ScriptRunner(), queue_seconds=60),
            "idle": serving(limits=Limits(idle_seconds=0.3)),
            "keys": serving(keys=KeyRing.of(["secret"])),
        }
        addresses = {name: stack.enter_context(server).http for name, server in servers.items()}
        test = {"servers": addresses, "audio": str(tmp_path / "audio.f32"), "words": words}
        run_tests("live.test.mjs", SLIPSTREAM_TEST=json.dumps(test))
