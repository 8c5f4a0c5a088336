"""A headless Chromium for the tests of pages, driven over its DevTools pipe: no further packages."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """One page. Messages of the DevTools protocol are JSON that ends with a zero byte."""

    def __init__(self, commands, answers):
        self._commands, self._answers = commands, answers
        self._number, self._received = 0, b""
        self.events: list[dict] = []
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """Send a command and return its result; events that come meanwhile are kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict:
        while b"\0" not in self._received:
            chunk = os.read(self._answers.fileno(), 1 << 20)
            assert chunk, "the browser has ended"
            self._received += chunk
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str):
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"waited in vain for {condition}"
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to an <input type=file>."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse, in CSS pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def requests(self) -> list[str]:
        """The addresses of all that the page has asked for."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]


def find_browser() -> str:
    """The program of a browser; skips the test where none is installed, unless CI says that there must be one."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None and not os.environ.get("CI"):
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    assert program, f"CI needs one of {', '.join(BROWSERS)}"
    return program


@contextlib.contextmanager
def open_browser(size: tuple[int, int] = (1280, 800)) -> Iterator[Browser]:
    """Start the browser of `find_browser`."""
    program = find_browser()
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += ["--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"]
        flags += ["--no-first-run", f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        # The browser reads commands from its descriptor 3 and answers on 4.
        line = f'exec "$0" "$@" 3<&{command_read} 4>&{answer_write}'
        process = subprocess.Popen(
            ["bash", "-c", line, program, *flags],
            pass_fds=(command_read, answer_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(answer_write)
        try:
            with os.fdopen(command_write, "wb") as commands, os.fdopen(answer_read, "rb") as answers:
                yield Browser(commands, answers)
        finally:
            process.kill()
            process.wait()
