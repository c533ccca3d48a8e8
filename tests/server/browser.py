"""Headless Chromium over its DevTools protocol, as far as the tests of the page need it."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """A running browser. Commands go to the browser itself, or to the tab of a session."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0

    def call(self, method: str, *, session: Tab | None = None, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result. Events of the tab that arrive first are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session.id
        self._socket.send(json.dumps(message))
        while True:
            answer: dict[str, Any] = json.loads(self._socket.recv(timeout=30))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            if session is not None and answer.get("sessionId") == session.id:
                session.note(answer)

    @contextlib.contextmanager
    def open_tab(self, url: str, script: str = "") -> Iterator[Tab]:
        """Open `url` in a tab that shares no storage with others. `script` runs before those of the page."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        tab = Tab(self, context, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        if script:
            tab.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        tab.call("Page.navigate", url=url)
        tab.wait_for("document.readyState === 'complete' && document.body.dataset.phase")
        try:
            yield tab
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)


class Tab:
    """One page. `problems`: exceptions and errors that its console has seen."""

    def __init__(self, browser: Browser, context: str, id: str) -> None:
        self._browser, self.context, self.id = browser, context, id
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, session=self, **parameters)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise AssertionError(f"{expression} stayed false: {self.problems}\n{self.text('body')}")
            time.sleep(0.03)

    def text(self, selector: str) -> str:
        """The text of an element, empty where it is hidden."""
        text: str = self.evaluate(
            f"(element => element.checkVisibility() ? element.innerText : '')(document.querySelector({selector!r}))"
        )
        return text

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({selector!r}).click()")

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def hover(self, selector: str) -> None:
        x, y = self.evaluate(
            f"(box => [box.x + box.width / 2, box.y + box.height / 2])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def resize(self, width: int, height: int, scale: int = 1) -> None:
        """Set the size of the window in CSS pixels, and how many pixels of a screenshot each of them is wide."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 500,
        )

    def set_scheme(self, scheme: str) -> None:
        """Prefer `light` or `dark`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def choose_file(self, selector: str, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def allow(self, permission: str, setting: str, url: str) -> None:
        """Set a permission of this tab's pages to `granted` or `denied`."""
        self._browser.call(
            "Browser.setPermission",
            permission={"name": permission},
            setting=setting,
            origin=url,
            browserContextId=self.context,
        )

    def save_downloads(self, folder: Path) -> None:
        self._browser.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), browserContextId=self.context
        )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(event["params"]["exceptionDetails"].get("exception", {}).get("description")))
        elif event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(event["params"]["entry"]["text"] + " " + event["params"]["entry"].get("url", ""))


@contextlib.contextmanager
def open_browser(microphone: Path, profile: Path) -> Iterator[Browser]:
    """Start a browser whose microphone plays a WAV once, and which can reach only this machine."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "--window-size=1000,820",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
        "about:blank",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            with connect(_devtools(profile), max_size=None) as socket:
                yield Browser(socket)
        finally:
            browser.terminate()


def _devtools(profile: Path) -> str:
    file, deadline = profile / "DevToolsActivePort", time.monotonic() + 30
    while not file.exists() or len(file.read_text().split()) < 2:
        assert time.monotonic() < deadline, "Chromium did not start"
        time.sleep(0.05)
    port, path = file.read_text().split()
    return f"ws://127.0.0.1:{port}{path}"
