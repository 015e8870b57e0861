"""A page in real Chromium, driven over a pipe: what it says, what it loads, how wide it is."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
).split()


@dataclass
class Seen:
    """What came of a page: console and log messages, addresses asked for, widths in CSS pixels, a picture of it."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    scroll_width: int = 0
    inner_width: int = 0
    found: Any = None
    png: bytes = b""


def look_at(page: Path | str, width: int, *, dark: bool = False, evaluate: str = "null") -> Seen:
    """Open a file, or an address, at a width and read the answer to a JavaScript expression from it."""
    with TemporaryDirectory() as folder:
        browser = _Browser(folder)
        try:
            return _look(browser, page, width, dark, evaluate)
        finally:
            browser.close()


def _look(browser: _Browser, page: Path | str, width: int, dark: bool, evaluate: str) -> Seen:
    target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
    browser.session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        browser.ask(f"{domain}.enable")
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.ask("Emulation.setDeviceMetricsOverride", **size)
    browser.ask("Emulation.setScrollbarsHidden", hidden=True)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.ask("Emulation.setEmulatedMedia", features=[scheme])
    browser.ask("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
    browser.wait_for("Page.loadEventFired")
    widths = "[document.documentElement.scrollWidth, innerWidth]"
    answers = [
        browser.ask("Runtime.evaluate", expression=said, returnByValue=True, awaitPromise=True)["result"].get("value")
        for said in (widths, evaluate)
    ]
    png = browser.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
    seen = Seen([], [], *answers[0], answers[1], base64.b64decode(png))
    for event in browser.events:
        if event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            seen.messages.append(json.dumps(event["params"]))
        if event["method"] == "Network.requestWillBeSent":
            seen.requests.append(event["params"]["request"]["url"])
    return seen


def pages(page: Path) -> int:
    """On how many sheets of A4 a file prints."""
    with TemporaryDirectory() as folder:
        browser = _Browser(folder)
        try:
            target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
            browser.session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            browser.ask("Page.enable")
            browser.ask("Page.navigate", url=page.resolve().as_uri())
            browser.wait_for("Page.loadEventFired")
            made = browser.ask("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]
        finally:
            browser.close()
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", base64.b64decode(made)))


class _Browser:
    """Messages are JSON, each ended by a zero byte: to file descriptor 3, from 4."""

    def __init__(self, folder: str) -> None:
        assert PROGRAM is not None
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        command = f'exec "$0" "$@" 3<&{reads} 4>&{writes}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, PROGRAM, *FLAGS, f"--user-data-dir={folder}"],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._buffer, self._number = b"", 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                return answer["result"]

    def wait_for(self, method: str) -> None:
        """Until an event has come."""
        while not any(event["method"] == method for event in self.events):
            self._receive()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._in, 1 << 16)
            assert more, "Chromium has gone"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def close(self) -> None:
        with suppress(AssertionError, OSError):
            self.session = None
            self.ask("Browser.close")
        os.close(self._out)
        os.close(self._in)
        self._process.wait(timeout=30)
