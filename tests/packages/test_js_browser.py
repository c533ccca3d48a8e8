"""The npm package in Chromium, whose microphone is a WAV file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.server.browser import CHROMIUM, Browser, open_browser
from tests.server.harness import serving
from tests.server.narration import FIRST, SECOND, NarratingRunner, write_narration

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with open_browser(write_narration(tmp_path / "speech.wav"), tmp_path / "profile") as browser:
        yield browser


RECORD = """
(async () => {
  const { Recorder, SlipstreamClient } = await import("./slipstream/index.js");
  const [{ deviceId }] = await navigator.mediaDevices.enumerateDevices();
  const recorder = new Recorder({ deviceId, sampleRate: 16000 });
  const client = new SlipstreamClient({ url: location.href, sampleRate: recorder.sampleRate });
  const seen = [];
  client.on("word", ({ text }) => seen.push(text) === COUNT && recorder.stop());
  const { words, turns, duration } = await client.transcribe(recorder);
  const texts = words.map(({ text }) => text);
  return { seen, texts, turns, duration, recorded: recorder.duration, rate: recorder.sampleRate };
})()"""


def test_a_recorder_and_a_client_transcribe_the_microphone(browser: Browser) -> None:
    words = FIRST + SECOND
    with serving(NarratingRunner()) as running, browser.open_tab(running.http) as tab:
        result = tab.evaluate(RECORD.replace("COUNT", str(len(words))))
        assert result["texts"] == result["seen"] == words
        assert result["rate"] == 16_000
        assert result["turns"][0]["end"] < result["turns"][1]["start"]
        assert result["duration"] == pytest.approx(result["recorded"])
        assert tab.problems == []


README = Path(__file__).parents[2] / "packages" / "js" / "README.md"


def test_the_example_of_the_readme(browser: Browser) -> None:
    example = README.read_text(encoding="utf-8").split("```js\n")[1].split("```")[0]
    imported, _, body = example.partition("\n\n")
    with serving(NarratingRunner()) as running, browser.open_tab(running.http) as tab:
        assert imported == 'import { Recorder, SlipstreamClient } from "slipstream-stt";'
        tab.evaluate("""
          window.logged = [];
          console.log = (text) => logged.push(text);
          document.body.append(Object.assign(document.createElement("button"), { id: "stop" }));
          void 0;""")
        script = body.replace("http://127.0.0.1:8080", running.http)
        load = 'const { Recorder, SlipstreamClient } = await import("./slipstream/index.js");'
        tab.evaluate(f"window.finished = (async () => {{ {load} {script} }})(); void 0")
        tab.wait_for("logged.length >= 3")
        tab.click("#stop")
        tab.evaluate("finished")
        *words, text = tab.evaluate("logged")
        assert words == (FIRST + SECOND)[: len(words)]
        assert text == " ".join(words)


UNPLUG = """
(async () => {
  const { Recorder, SlipstreamClient } = await import("./slipstream/index.js");
  const get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  let track;
  navigator.mediaDevices.getUserMedia = async (options) => {
    const input = await get(options);
    [track] = input.getAudioTracks();
    return input;
  };
  const recorder = new Recorder();
  const client = new SlipstreamClient({ url: location.href, sampleRate: recorder.sampleRate });
  recorder.on("disconnected", () => recorder.stop());
  client.on("word", () => track.dispatchEvent(new Event("ended")));
  const { words } = await client.transcribe(recorder);
  navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("Permission denied", "NotAllowedError"));
  const refused = await new Recorder().start().catch(({ name, message, cause }) => [name, message, cause.name]);
  return { words: words.map(({ text }) => text), refused };
})()"""


def test_a_microphone_that_is_disconnected_or_refused(browser: Browser) -> None:
    with serving(NarratingRunner()) as running, browser.open_tab(running.http) as tab:
        result = tab.evaluate(UNPLUG)
        assert result["words"] == (FIRST + SECOND)[: len(result["words"])]
        assert 1 <= len(result["words"]) < 8
        message = "the microphone cannot be opened: NotAllowedError: Permission denied"
        assert result["refused"] == ["SlipstreamError", message, "NotAllowedError"]
        assert tab.problems == []
