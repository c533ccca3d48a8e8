"""The page in a real browser, whose microphone is a WAV: captions, readouts, copy, SRT, keyboard, light and dark."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import ScriptRunner, tiny_tokenizer
from tests.server.browser import CHROMIUM, open_tab
from tests.server.harness import serving, wait_for

from slipstream.config import PAD_ID, WORD_ID
from slipstream.types import BoolArray, FloatArray, StepOutput

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")

FIRST = ["Speech", "becomes", "text", "while", "you", "are", "speaking,", "word", "after", "word", "after", "word"]
SECOND = ["l'été", "dernier,", "nous", "sommes", "allés", "à", "la", "plage", "près", "de", "Saint-Malo"]
WORD_SECONDS, GAP_SECONDS, PAUSE_SECONDS = 0.24, 0.16, 1.6
MICROPHONE_RATE = 48_000


class NarratingRunner(ScriptRunner):
    """Says the next word of a text at each onset of sound, so that a browser's resampling changes nothing."""

    def __init__(self) -> None:
        super().__init__(slots=1)
        self._text = [tiny_tokenizer().encode(word) for word in FIRST + SECOND]

    def reset(self, slots: object) -> None:
        self._frame = self._silent = self._said = self._free = 0
        self._plan: dict[int, int] = {}

    def snapshot(self, slot: int) -> object:
        return (self._frame, self._silent, self._said, self._free, dict(self._plan))

    def restore(self, slot: int, state: object) -> None:
        assert isinstance(state, tuple)
        self._frame, self._silent, self._said, self._free, self._plan = state

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        if np.abs(pcm_BS[0]).max() > 0.1:
            if self._silent and self._said < len(self._text):
                tokens = [WORD_ID, *self._text[self._said]]
                first = max(self._frame + self.delay_frames - 1, self._free)
                self._plan.update(enumerate(tokens, start=first))
                self._free = first + len(tokens)
                self._said += 1
            self._silent = 0
        else:
            self._silent += 1
        self._frame += 1
        pause_BH = np.full((1, 4), min(1.0, self._silent / 12), np.float32)
        return StepOutput(np.array([self._plan.pop(self._frame, PAD_ID)]), np.full(1, -0.05, np.float32), pause_BH)


@pytest.fixture
def microphone(tmp_path: Path) -> Path:
    """The two sentences, a burst of tone for each word."""

    def tone(seconds: float, level: float) -> FloatArray:
        time = np.arange(round(seconds * MICROPHONE_RATE)) / MICROPHONE_RATE
        return (level * np.sin(2 * np.pi * 300 * time)).astype(np.float32)

    pieces = [tone(0.5, 0)]
    for sentence in (FIRST, SECOND):
        for _ in sentence:
            pieces += [tone(WORD_SECONDS, 0.5), tone(GAP_SECONDS, 0)]
        pieces.append(tone(PAUSE_SECONDS, 0))
    path = tmp_path / "microphone.wav"
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, MICROPHONE_RATE, 0, "NONE", ""))
        out.writeframes((np.concatenate(pieces) * 32767).astype("<i2").tobytes())
    return path


CAPTIONS = """[...document.querySelectorAll('#turns li')].map(
    turn => [...turn.children].map(word => word.firstChild.textContent).join(' '))"""


def test_captions_from_the_microphone_and_from_a_file(microphone: Path, tmp_path: Path) -> None:
    with serving(NarratingRunner()) as running, open_tab(running.http, microphone, tmp_path / "profile") as tab:
        tab.wait_for("document.getElementById('model').textContent === 'script'")
        tab.evaluate("document.getElementById('times').click()")

        tab.evaluate("document.getElementById('record').focus()")
        tab.press(" ", 32, text=" ")
        tab.wait_for("document.getElementById('record').getAttribute('aria-pressed') === 'true'")
        tab.wait_for(f"document.querySelectorAll('.word:not(.partial)').length >= {len(FIRST) + 4}", 40)
        screenshot = tmp_path / "page.png"
        tab.screenshot(screenshot)
        tab.wait_for(f"document.querySelectorAll('.word:not(.partial)').length === {len(FIRST + SECOND)}", 40)
        tab.wait_for("document.getElementById('pause').value > 0.6")
        tab.press(" ", 32, text=" ")
        tab.wait_for("document.getElementById('status').textContent === 'Done.'")

        assert tab.evaluate(CAPTIONS) == [" ".join(FIRST), " ".join(SECOND)]
        assert tab.evaluate("document.getElementById('count').textContent") == str(len(FIRST + SECOND))
        assert tab.evaluate("document.getElementById('delay').textContent") == "0.48 s"
        assert tab.evaluate("document.getElementById('lag').textContent").endswith(" ms")
        starts = tab.evaluate("[...document.querySelectorAll('.word time')].map(time => Number(time.textContent))")
        gaps = np.diff(starts[: len(FIRST)])
        assert np.median(gaps) == pytest.approx(WORD_SECONDS + GAP_SECONDS, abs=0.081)

        tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        tab.evaluate("document.getElementById('save').click()")
        saved = tmp_path / "captions.srt"
        wait_for(lambda: saved.exists() and saved.stat().st_size)
        lines = saved.read_text(encoding="utf-8").splitlines()
        assert lines[0] == "1"
        assert lines[1].count(" --> ") == 1
        assert " ".join(line for line in lines if line and line[0].isalpha()) == " ".join(FIRST + SECOND)

        tab.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        tab.evaluate("document.getElementById('copy').click()")
        tab.wait_for("document.getElementById('status').textContent === 'Copied.'")
        assert tab.evaluate("navigator.clipboard.readText()") == f"{' '.join(FIRST)}\n{' '.join(SECOND)}"

        tab.choose_file("#file", microphone)
        tab.wait_for("document.getElementById('status').textContent === 'Done.'")
        assert tab.evaluate(CAPTIONS) == [" ".join(FIRST), " ".join(SECOND)]

        grounds = []
        for scheme in ("light", "dark"):
            tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            grounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert grounds[0] != grounds[1]
        assert tab.problems == []

    assert screenshot.stat().st_size > 10_000
    if kept := os.environ.get("SLIPSTREAM_SCREENSHOT"):
        Path(kept).write_bytes(screenshot.read_bytes())
