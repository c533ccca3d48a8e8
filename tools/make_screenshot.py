"""Makes docs/images/page.png: the page with the built-in model, in Chromium, whose microphone is examples/sample.opus.

.venv/bin/python -m tools.make_screenshot
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
from tests.server.browser import open_browser
from tests.server.harness import wait_for

from slipstream.audio import decode

ROOT = Path(__file__).parent.parent
SIZE = (1000, 800)
SCALE = 2
WORDS = 20


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "slipstream", "serve", "--model", "tiny", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: _answers(port), 60)
            _take(port, Path(folder))
        finally:
            server.terminate()


def _take(port: int, folder: Path) -> None:
    microphone = folder / "microphone.wav"
    audio_S = np.concatenate([piece_CS[0] for piece_CS in decode(ROOT / "examples" / "sample.opus")])
    with wave.open(str(microphone), "wb") as out:
        out.setparams((1, 2, 24_000, 0, "NONE", ""))
        out.writeframes((audio_S * 32767).astype("<i2").tobytes())
    with open_browser(microphone, folder / "profile") as browser, browser.open_tab(f"http://127.0.0.1:{port}") as tab:
        tab.resize(*SIZE, SCALE)
        tab.click("summary")
        tab.click("#primary")
        tab.wait_for(f"document.querySelectorAll('.word').length >= {WORDS}")
        tab.screenshot(ROOT / "docs" / "images" / "page.png")
        tab.click("#primary")


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
