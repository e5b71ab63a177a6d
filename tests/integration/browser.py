"""A real browser, headless: Debian's chromium, driven by chromedriver over the W3C WebDriver protocol in plain HTTP."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.integration.engines import clean_environment, free_port, wait_listening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
ENTER, TAB, LEFT = "\ue007", "\ue004", "\ue012"  # key codes of WebDriver


class Browser:
    """One window. Every method is one or a few calls that return when they are done."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def open(self, url: str) -> None:
        """Go to `url` and wait until it is loaded."""
        self._call("url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run `script` as the body of a function in the page and return what it returns."""
        return self._call("execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """Return the text of the first element that `selector` finds, in one line."""
        return str(self.run("return document.querySelector(arguments[0]).textContent.replace(/\\s+/g, ' ')", selector))

    def wait_for(self, condition: str, limit_s: float = 60.0) -> Any:
        """Wait until the expression `condition` is true in the page; AssertionError with the page's text if never."""
        give_up_s = time.monotonic() + limit_s
        while time.monotonic() < give_up_s:
            if found := self.run(f"return {condition}"):
                return found
            time.sleep(0.1)
        pytest.fail(f"never: {condition}\n{self.text('body')}")

    def look_like(self, *, scheme: str = "light", width: int = 1280, height: int = 900, motion: str = "reduce") -> None:
        """Have the page believe in a colour scheme, a size in CSS pixels and a wish about motion."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self._devtools("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._devtools("Emulation.setDeviceMetricsOverride", size)

    def press(self, key: str) -> None:
        """Press and release a key."""
        strokes = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._call("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    @contextmanager
    def before_every_page(self, script: str) -> Iterator[None]:
        """Have `script` run before anything of a page does that is opened meanwhile."""
        made = self._devtools("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        try:
            yield
        finally:
            self._devtools("Page.removeScriptToEvaluateOnNewDocument", made)

    def screenshot(self, path: Path) -> None:
        """Write the whole page to `path`."""
        shot = self._devtools("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Return what the browser had to complain of since it was asked last: errors, and violations of the policy."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._call("se/log", {"type": "browser"})]

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._call("goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.post(path, json=body)
        value = answer.json()["value"]
        assert answer.is_success, value
        return value


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Run a browser with an empty profile below `folder`; skips the test where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    port = free_port()
    quiet = subprocess.DEVNULL
    command = [driver, f"--port={port}", "--allowed-ips=127.0.0.1"]
    with subprocess.Popen(command, env=clean_environment(), stdout=quiet, stderr=quiet) as process:
        try:
            wait_listening(port)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
                options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"]}
                wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
                answer = http.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
                assert "sessionId" in answer, answer
                session = f"/session/{answer['sessionId']}"
                http.base_url = http.base_url.join(session)
                try:
                    yield Browser(http)
                finally:
                    http.delete(f"http://127.0.0.1:{port}{session}")
        finally:
            process.terminate()
