"""A headless Chromium, driven over its own protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path

import httpx
import pytest
from conftest import until
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page. `folder` holds the profile."""

    def __init__(self, folder: Path):
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        options += [f"--user-data-dir={folder}", "--window-size=1400,1000", "about:blank"]
        self.process = subprocess.Popen([CHROMIUM, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        about = folder / "DevToolsActivePort"
        port = until(lambda: about.exists() and about.read_text()).split()[0]
        pages = until(lambda: httpx.get(f"http://127.0.0.1:{port}/json", timeout=600).json())
        page = next(page for page in pages if page["type"] == "page")
        self.socket = connect(page["webSocketDebuggerUrl"], max_size=None, open_timeout=600, ping_interval=None)
        self.calls, self.asked = 0, {}  # addresses that the page asked for
        self.call("Network.enable")

    def call(self, method: str, **arguments) -> dict:
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": arguments}))
        while True:
            answer = json.loads(self.socket.recv())
            about = answer.get("params", {})
            if answer.get("method") == "Network.requestWillBeSent":
                self.asked[about["requestId"]] = about["request"]["url"]
            elif answer.get("method") == "Network.webSocketCreated":
                self.asked[about["requestId"]] = about["url"]
            elif answer.get("method") == "Network.loadingFailed" and about.get("blockedReason") == "csp":
                self.asked.pop(about["requestId"], None)  # it never left
            if answer.get("id") == self.calls:
                return answer.get("result", {})

    def go(self, url: str) -> None:
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer

    def value(self, script: str):
        """What a line of JavaScript gives."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True).get("result", {}).get("value")

    def shows(self, script: str):
        """Waits until a line of JavaScript is true on the page, and returns what it gives."""
        return until(lambda: self.value(script))

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field."""
        self.shows(f"!!document.querySelector({selector!r})")
        self.value(f"document.querySelector({selector!r}).select()")
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({selector!r}).click()")

    def picture(self, path: Path) -> None:
        path.write_bytes(b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def browser(tmp_path_factory):
    """A browser that keeps the errors of the pages it opens; a test skips where no Chromium is installed."""
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    for domain in ("Runtime", "Log", "Page"):
        browser.call(f"{domain}.enable")
    # Errors of the script and of promises, from before the page's own script on.
    watch = "window.faults = []; for (const kind of ['error', 'unhandledrejection'])"
    watch += " addEventListener(kind, event => faults.push(String(event.message || event.reason)));"
    watch += " for (const kind of ['error', 'warn']) console[kind] = (...words) => faults.push(words.join(' '));"
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=watch)
    yield browser
    browser.close()
