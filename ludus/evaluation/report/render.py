"""Pictures of a page: PNG files made by a Chromium or Chrome that is already installed.

What lives here: finding the browser, driving it, one screenshot. What does not: any page. The one idea: the browser is
spoken to over a pipe (the DevTools protocol, no port and no package), because its one-shot `--screenshot` can neither
show a page narrower than 500 pixels nor measure how long it is.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ludus.base.errors import MissingExtra, RunError
from ludus.base.files import atomic_write

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TALLEST = 16_000  # pixels; the browser's own textures end at 16384
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)


def to_png(
    html: Path, png: Path, width: int = 1200, height: int | None = None, *, dark: bool = False, seconds: float = 60
) -> Path:
    """Photograph a page from disk, `width` CSS pixels wide and as tall as it is unless `height` is given.

    At most 16000 pixels tall. Raises MissingExtra without a browser, RunError when the page is missing or the browser
    fails or takes longer than `seconds`.
    """
    html = Path(html).resolve()
    if not html.is_file():
        raise RunError(f"{html} does not exist; write the report first")
    with _Browser.open(find_browser(), seconds) as browser:
        browser.load(html.as_uri(), width, height or 800, dark=dark)
        tall = height or min(TALLEST, browser.page_height())
        clip = {"x": 0, "y": 0, "width": width, "height": tall, "scale": 1}
        shot = browser.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    atomic_write(Path(png), base64.b64decode(shot["data"]))
    return Path(png)


def find_browser() -> str:
    """Return the path of an installed Chromium or Chrome; raise MissingExtra when there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise MissingExtra(
        "a picture of the report needs Chromium or Chrome on the PATH; install it (`apt install chromium`, "
        "`brew install --cask chromium`) or open report.html in any browser"
    )


class _Browser:
    """A headless browser with one blank page, spoken to over a pipe."""

    def __init__(self, send: int, receive: int, deadline: float) -> None:
        self.send, self.receive, self.deadline = send, receive, deadline
        self.session: str | None = None
        self.number, self.buffer = 0, b""
        self.events: list[str] = []

    @classmethod
    @contextmanager
    def open(cls, path: str, seconds: float) -> Iterator["_Browser"]:
        """Start the browser with a profile of its own, and end it whatever happens."""
        with tempfile.TemporaryDirectory(prefix="ludus-browser-", ignore_cleanup_errors=True) as profile:
            to_browser, from_browser = os.pipe(), os.pipe()
            # The protocol's pipe is file 3 to read from and 4 to write to: a shell puts them there without a race.
            script = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
            process = subprocess.Popen(
                ["bash", "-c", script, path, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(to_browser[0], from_browser[1]),
            )
            os.close(to_browser[0])
            os.close(from_browser[1])
            browser = cls(to_browser[1], from_browser[0], time.monotonic() + seconds)
            try:
                target = browser.call("Target.createTarget", url="about:blank")["targetId"]
                attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
                browser.session = attached["sessionId"]
                yield browser
            finally:
                os.close(browser.send)  # a closed pipe is the browser's signal to leave
                os.close(browser.receive)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def load(self, address: str, width: int, height: int, *, dark: bool) -> None:
        """Open a page in a window of the given size and colour scheme and wait until it is drawn."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.enable")
        self.events.clear()
        self.call("Page.navigate", url=address)
        while "Page.loadEventFired" not in self.events:
            self._read()

    def page_height(self) -> int:
        """Return how tall the whole page is, in CSS pixels."""
        return int(self.call("Page.getLayoutMetrics")["cssContentSize"]["height"])

    def evaluate(self, script: str) -> Any:
        """Run a script in the page and return its value."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        try:
            os.write(self.send, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise RunError("the browser ended at once; try it by hand: chromium --headless --no-sandbox") from None
        while (answer := self._read()).get("id") != self.number:
            pass
        if "error" in answer:
            raise RunError(f"the browser refused {method}: {answer['error'].get('message')}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        """Wait for one message; remember the name of an event."""
        while b"\0" not in self.buffer:
            left = self.deadline - time.monotonic()
            if left <= 0 or not select.select([self.receive], [], [], left)[0]:
                raise RunError("the browser took too long to draw the page; close other programs and try again")
            received = os.read(self.receive, 1 << 20)
            if not received:
                raise RunError("the browser ended at once; try it by hand: chromium --headless --no-sandbox")
            self.buffer += received
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        self.events.append(str(message.get("method", "")))
        return message
