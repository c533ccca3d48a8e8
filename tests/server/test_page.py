"""The page in a real browser, whose microphone is a WAV file."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import LEXICON, ScriptRunner, silence, sound_of
from tests.server.browser import CHROMIUM, Browser, Tab, open_browser
from tests.server.harness import hold_after, kyutai, serving, until, wait_for
from tests.server.narration import FIRST, SECOND, NarratingRunner, write_narration, write_wav

from slipstream.connections.keys import KeyRing

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_narration(tmp_path_factory.mktemp("page") / "speech.wav")


@pytest.fixture(scope="module")
def browser(microphone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(microphone, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


TURNS = "[...document.querySelectorAll('#turns p')].map(line => line.textContent.trim())"
WORDS = "[...document.querySelectorAll('.word')].map(word => word.textContent)"
STARTS = "[...document.querySelectorAll('.word')].map(word => parseFloat(word.dataset.tip.slice(2)))"
IDLE = "document.body.dataset.phase === 'idle'"
LIVE = "document.body.dataset.phase === 'live'"
NOTICE, STATUS = "#notice-text", "#status"
STATUS_TEXT = "document.getElementById('status').textContent"


def transcribe_file(tab: Tab, path: Path) -> None:
    tab.choose_file("#file", path)
    tab.wait_for(f"{IDLE} && /words? from {path.name}$/.test(document.querySelector('#status').textContent)")


LOG_MESSAGES = """
window.sent = [];
window.sockets = [];
window.loudest = 0;
const setProperty = CSSStyleDeclaration.prototype.setProperty;
CSSStyleDeclaration.prototype.setProperty = function (name, value) {
  if (name === "--level") loudest = Math.max(loudest, value);
  setProperty.call(this, name, value);
};
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) {
  if (!sockets.includes(this)) sockets.push(this);
  sent.push(typeof data === "string" ? data : data.byteLength);
  send.call(this, data);
};"""


def test_stop_keeps_the_last_words(browser: Browser) -> None:
    runner = NarratingRunner(step_seconds=0.03)
    with serving(runner) as running, browser.open_tab(running.http, LOG_MESSAGES) as tab:
        tab.evaluate("document.getElementById('primary').focus()")
        tab.press(" ", 32, text=" ")
        tab.wait_for(LIVE)
        assert tab.text("#primary") == "Stop"
        wait_for(lambda: runner.written >= 3, 30)
        shown = tab.evaluate(f"(shown => (document.getElementById('primary').click(), shown))({WORDS}.length)")
        tab.wait_for(IDLE)

        words = tab.evaluate(WORDS)
        assert words == (FIRST + SECOND)[: runner.written]
        assert len(words) > shown, "Stop came when all words were shown: the test shows nothing"
        assert tab.evaluate("document.querySelectorAll('.partial').length") == 0
        assert tab.evaluate("loudest") > 0.5
        sent = tab.evaluate("sent")
        assert sent.index('{"type":"close"}') == len(sent) - 1, "audio was sent after the end"
        assert tab.text(STATUS).startswith(f"{len(words)} words in 0:0")
        assert tab.text("#primary") == "Start recording"
        assert tab.text(NOTICE) == ""
        assert tab.problems == []

        # A second recording continues the transcript, in a new turn and with later times, and so does one that
        # loses its connection.
        before = tab.evaluate(TURNS)
        tab.press(" ", 32, text=" ")
        tab.wait_for(f"{WORDS}.length > {len(words)}")
        tab.evaluate("sockets.at(-1).close()")
        tab.wait_for(f"sockets.length === 3 && {LIVE} && {STATUS_TEXT} === 'Listening'")
        assert (
            tab.evaluate("document.getElementById('reason').textContent") == "the connection was lost (close code 1005)"
        )
        shown = len(tab.evaluate(WORDS))
        tab.wait_for(f"{WORDS}.length > {shown}")
        tab.press(" ", 32, text=" ")
        tab.wait_for(IDLE)
        assert tab.evaluate(TURNS)[: len(before)] == before
        starts = tab.evaluate(STARTS)
        assert starts == sorted(starts)
        assert tab.problems == []


DOUBLE_CLICK = """(button => {
  button.click();
  const texts = [button.innerText, document.getElementById('status').innerText];
  button.click();
  return texts;
})(document.getElementById('primary'))"""


def test_last_words_that_take_long_can_be_cancelled_and_a_recording_is_not_removed_unasked(browser: Browser) -> None:
    with serving(NarratingRunner(step_seconds=0.2)) as running, browser.open_tab(running.http) as tab:
        tab.click("#primary")
        tab.wait_for(f"{LIVE} && {WORDS}.length >= 1")
        assert tab.evaluate(DOUBLE_CLICK) == ["Finishing …", "Finishing the last words …"]
        tab.wait_for("document.getElementById('primary-label').textContent === 'Cancel'")
        tab.click("#primary")
        tab.wait_for(IDLE)
        assert tab.text(STATUS) == "Stopped before the last words."
        assert tab.evaluate("document.querySelectorAll('.partial').length") == 0
        kept = tab.evaluate(WORDS)
        assert kept

        for answer, left in (("cancel", kept), ("replace", [])):
            tab.click("#clear")
            assert tab.evaluate("document.getElementById('replace').open")
            tab.click(f"#replace [value={answer}]")
            tab.wait_for(f"!document.getElementById('replace').open && {WORDS}.length === {len(left)}")
        assert tab.text("#empty h2") == "Speech to text, as you speak"
        assert tab.problems == []


def test_a_file_with_progress_readouts_copy_and_downloads(browser: Browser, microphone: Path, tmp_path: Path) -> None:
    released = hold_after(runner := NarratingRunner(), steps=50)  # of 4 s
    with serving(runner) as running, browser.open_tab(running.http) as tab:
        assert tab.text("#empty h2") == "Speech to text, as you speak"
        assert tab.evaluate("document.getElementById('copy').disabled")
        tab.click("summary")
        tab.choose_file("#file", microphone)
        tab.wait_for("document.getElementById('clock').textContent === '0:04 / 0:08'")
        assert tab.evaluate("document.getElementById('progress').value") == pytest.approx(4 / 8.5, abs=0.01)
        tab.wait_for("document.getElementById('announcer').textContent.includes('Speech')")
        released.set()
        tab.wait_for(IDLE)

        assert tab.evaluate(TURNS) == [" ".join(FIRST), " ".join(SECOND)]
        assert tab.text(STATUS) == "12 words from speech.wav"
        assert tab.text("#model") == "script"
        assert tab.text("#delay") == "0.48 s"
        assert tab.text("#latency").endswith(" ms")
        assert tab.text("#queue").endswith(" s")
        assert tab.text("#count") == "12"
        assert [label.strip() for label in tab.text("#pauses").split("\n")[1:]] == ["0.5 s", "1 s", "2 s", "3 s"]
        assert tab.evaluate("document.querySelectorAll('#pauses meter')[2].value") > 0.6

        tab.hover(".word")
        tab.wait_for("!document.getElementById('tip').hidden")
        assert tab.text("#tip").startswith("0:00.4")
        assert tab.text("#tip").endswith(" % confident")
        tab.click("#times")
        label = tab.evaluate("getComputedStyle(document.querySelector('.word'), '::after').content")
        assert label.strip('"').startswith("0:00.4")

        tab.save_downloads(tmp_path)
        for format in ("txt", "srt", "vtt"):
            tab.click("#download")
            tab.click(f"[data-format={format}]")
        files = {format: tmp_path / f"transcript.{format}" for format in ("txt", "srt", "vtt")}
        wait_for(lambda: all(file.exists() and file.stat().st_size for file in files.values()))
        text = f"{' '.join(FIRST)}\n{' '.join(SECOND)}\n"
        assert files["txt"].read_text(encoding="utf-8") == text
        for format in ("srt", "vtt"):
            cues = files[format].read_text(encoding="utf-8").strip().split(" --> ")[1:]
            assert [cue.split("\n\n")[0].split("\n", 1)[1].replace("\n", " ") for cue in cues] == text.splitlines()

        tab.allow("clipboard-read", "granted", running.http)
        tab.allow("clipboard-write", "granted", running.http)
        tab.click("#copy")
        tab.wait_for("document.getElementById('status').textContent === 'Copied'")
        assert tab.evaluate("navigator.clipboard.readText()") == text
        assert tab.problems == []


def test_a_bad_file_keeps_the_transcript(browser: Browser, microphone: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.mp3"
    notes.write_text("these are no sounds")
    with serving(NarratingRunner()) as running, browser.open_tab(running.http) as tab:
        transcribe_file(tab, microphone)
        before = tab.evaluate(TURNS)
        tab.choose_file("#file", notes)
        tab.wait_for(f"document.querySelector('{NOTICE}').textContent && {IDLE}")
        assert tab.text(NOTICE).startswith("notes.mp3 is not audio that this browser can read.")
        assert tab.evaluate(TURNS) == before
        tab.click("#dismiss")
        assert tab.text(NOTICE) == ""

        transcribe_file(tab, microphone)  # a file takes the place of another
        assert tab.evaluate(TURNS) == before
        assert tab.problems == []


def test_channels_in_opposite_phase(browser: Browser, tmp_path: Path) -> None:
    audio_S = np.concatenate([sound_of("sea", 4), silence(4), sound_of("dog", 4), silence(4)])
    stereo = write_wav(tmp_path / "stereo.wav", np.stack([audio_S, -audio_S], axis=1), 24_000)
    with serving(ScriptRunner()) as running, browser.open_tab(running.http) as tab:
        transcribe_file(tab, stereo)
        assert tab.evaluate(WORDS) == ["sea", "dog"]


def test_the_sample(browser: Browser) -> None:
    with serving(NarratingRunner()) as running, browser.open_tab(running.http) as tab:
        tab.click("#sample")
        tab.wait_for(f"{IDLE} && document.querySelector('#status').textContent.endsWith('words from the sample')")
        assert tab.evaluate(WORDS)[:2] == FIRST[:2]
        assert tab.problems == []


# The switch that lets a WAV be the microphone also grants every permission.
BLOCK_MICROPHONE = """
navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("Permission denied", "NotAllowedError"));"""


def test_a_blocked_microphone(browser: Browser) -> None:
    with serving(NarratingRunner()) as running, browser.open_tab(running.http, BLOCK_MICROPHONE) as tab:
        tab.click("#primary")
        tab.wait_for(f"document.querySelector('{NOTICE}').textContent && {IDLE}")
        assert tab.text(NOTICE).startswith("The microphone is blocked.")
        assert tab.text("#primary") == "Start recording"


@contextmanager
def occupied(address: str) -> Iterator[None]:
    """A client that holds a slot until the block ends."""
    released, ready = threading.Event(), threading.Event()

    async def hold() -> None:
        async with kyutai(address) as socket:
            await until(socket, "Ready")
            ready.set()
            await asyncio.to_thread(released.wait)

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        released.set()
        thread.join()


@pytest.mark.parametrize(
    ("queue_seconds", "message"),
    [(30.0, "The server is full. You are number 1 in the queue."), (0.0, "The server is full. Trying again")],
)
def test_a_full_server(browser: Browser, microphone: Path, queue_seconds: float, message: str) -> None:
    with serving(NarratingRunner(), queue_seconds=queue_seconds) as running, browser.open_tab(running.http) as tab:
        with occupied(running.address):
            tab.choose_file("#file", microphone)
            tab.wait_for(f"{STATUS_TEXT}.startsWith({json.dumps(message)})")
            assert tab.text("#primary") == "Stop"
        tab.wait_for(f"{IDLE} && {WORDS}.length === 12")
        assert tab.text(STATUS) == "12 words from speech.wav"


def test_a_key(browser: Browser, microphone: Path) -> None:
    keys = KeyRing.of(["secret"])
    with serving(NarratingRunner(), keys=keys) as running, browser.open_tab(running.http) as tab:
        tab.wait_for("!document.getElementById('key-form').hidden")
        assert tab.text("#key-label") == "This server needs a key."

        def enter(key: str) -> None:
            tab.evaluate(f"document.getElementById('key').value = {key!r}")
            tab.click("#key-form button")

        enter("wrong")
        tab.wait_for("document.getElementById('key-label').textContent === 'The server did not accept this key.'")
        assert tab.evaluate("document.activeElement.id") == "key"
        tab.choose_file("#file", microphone)
        tab.wait_for(f"{IDLE} && !document.getElementById('key-form').hidden")
        assert tab.text(NOTICE) == ""
        enter("secret")  # continues with the file
        tab.wait_for(f"{IDLE} && {WORDS}.length === 12")
        assert tab.text("#key-form") == ""


def test_a_restarted_server(browser: Browser, tmp_path: Path) -> None:
    words = [LEXICON[index % 4] for index in range(30)]
    pieces = [piece for word in words for piece in (sound_of(word, 4), silence(4))]
    talk = write_wav(tmp_path / "talk.wav", np.concatenate(pieces), 24_000)
    with serving(ScriptRunner(step_seconds=0.01)) as first:
        port = int(first.address.rpartition(":")[2])
        tabs = browser.open_tab(first.http)
        tab = tabs.__enter__()
        tab.choose_file("#file", talk)
        tab.wait_for(f"{WORDS}.length >= 4")
    try:
        tab.wait_for("document.querySelector('#status').textContent.includes('Trying again')")
        kept = tab.evaluate(WORDS)
        assert 3 <= len(kept) < 30  # the word that was being written is dropped
        with serving(ScriptRunner(step_seconds=0.0), port=port):
            tab.wait_for(IDLE)
        assert tab.evaluate(WORDS) == words
        assert tab.text(STATUS) == "30 words from talk.wav"
        starts = tab.evaluate(STARTS)
        assert np.diff(starts) == pytest.approx(0.64, abs=0.17)
    finally:
        tabs.__exit__(None, None, None)


def test_scrolling_back_is_respected(browser: Browser, tmp_path: Path) -> None:
    pieces = [piece for index in range(30) for piece in (sound_of(LEXICON[index % 4], 4), silence(12))]
    talk = write_wav(tmp_path / "talk.wav", np.concatenate(pieces), 24_000)
    at_end = "(box => box.scrollHeight - box.scrollTop - box.clientHeight < 2)(document.getElementById('scroll'))"
    released = hold_after(runner := ScriptRunner(), steps=16 * 17)
    with serving(runner) as running, browser.open_tab(running.http) as tab:
        tab.resize(1000, 657)
        tab.choose_file("#file", talk)
        tab.wait_for(f"{WORDS}.length >= 16")
        assert tab.evaluate("document.getElementById('scroll').scrollTop") > 100
        assert tab.evaluate(at_end)
        tab.evaluate("document.getElementById('scroll').scrollTop = 0")
        tab.wait_for("!document.getElementById('latest').hidden")
        released.set()
        tab.wait_for(f"{WORDS}.length === 30")
        assert tab.evaluate("document.getElementById('scroll').scrollTop") == 0
        tab.click("#latest")
        assert tab.evaluate(at_end)
        tab.wait_for(f"document.getElementById('latest').hidden && {IDLE}")
        assert tab.evaluate(at_end)


CONTRAST = """
[...document.querySelectorAll('button:not(:disabled) , p, time, .word, dt, dd, legend, summary, label')]
  .filter(element => element.checkVisibility() && element.innerText.trim())
  .map(element => {
    const parse = color => color.match(/[\\d.]+/g).map(Number);
    const light = color => parse(color).slice(0, 3).map(part => part / 255)
      .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
      .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    let ground = element;
    while (parse(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
    const pair = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(light).sort();
    return [(pair[1] + 0.05) / (pair[0] + 0.05), element.innerText];
  }).filter(([ratio]) => ratio < 4.5)"""
NAMELESS = """[...document.querySelectorAll('button, input:not([hidden]), meter, progress')]
  .filter(element => !(element.innerText || element.textContent || element.ariaLabel || element.labels?.length))
  .map(element => element.outerHTML)"""
OVERFLOW = "document.documentElement.scrollWidth > innerWidth"
IN_VIEW = """['#primary', 'summary'].every(
  name => document.querySelector(name).getBoundingClientRect().bottom <= innerHeight)"""


def test_sizes_schemes_and_names(browser: Browser, microphone: Path) -> None:
    with serving(NarratingRunner()) as running, browser.open_tab(running.http) as tab:
        grounds = set()
        for is_full in (False, True):
            for scheme in ("light", "dark"):
                tab.set_scheme(scheme)
                grounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
                for width, height in ((1000, 657), (390, 844), (390, 657)):
                    tab.resize(width, height)
                    assert not tab.evaluate(OVERFLOW), (width, height)
                    assert tab.evaluate(IN_VIEW), (width, height)
                    assert tab.evaluate(CONTRAST) == [], scheme
            if not is_full:
                transcribe_file(tab, microphone)
                tab.evaluate("document.querySelector('.word').classList.add('partial')")
                tab.click("summary")
                tab.resize(390, 844)
                assert not tab.evaluate(OVERFLOW)
                assert tab.evaluate(CONTRAST) == []
                tab.click("summary")
        assert len(grounds) == 2
        assert tab.evaluate(NAMELESS) == []
        assert tab.problems == []
