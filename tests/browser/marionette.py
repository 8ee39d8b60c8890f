"""Firefox, driven by its own remote control, Marionette: enough to open a page, run scripts there, and take a picture.

Marionette speaks over a socket, each message as its length, a colon, and JSON: `[0, id, command, parameters]` to the
browser, `[1, id, error, result]` from it. https://firefox-source-docs.mozilla.org/testing/marionette/Protocol.html
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PREFERENCES = """\
user_pref("marionette.port", {port});
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.startup.homepage_override.mstone", "ignore");
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("toolkit.telemetry.reportingpolicy.firstRun", false);
user_pref("app.update.disabledForTesting", true);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("services.settings.server", "data:,#remote-settings-dummy/v1");
"""
START = 60.0  # seconds for the browser to answer


class Firefox:
    """One window of a browser that was started for this."""

    def __init__(self, connection: socket.socket):
        self.connection, self.sent, self.unread = connection, 0, b""
        self._receive()  # who it is
        self.do("WebDriver:NewSession", {})

    def do(self, command: str, parameters: dict[str, Any]) -> Any:
        """Have a command done, and return its result."""
        self.sent += 1
        text = json.dumps([0, self.sent, command, parameters]).encode()
        self.connection.sendall(b"%d:%s" % (len(text), text))
        _, _, error, result = self._receive()
        if error:
            raise RuntimeError(f"{command}: {error['message']}")
        return result

    def open(self, address: str) -> None:
        """Go there, and wait until the page is loaded."""
        self.do("WebDriver:Navigate", {"url": address})

    def run(self, script: str) -> Any:
        """What a function body returns in the page."""
        return self.do("WebDriver:ExecuteScript", {"script": script, "args": [], "sandbox": None})["value"]

    def wait(self, expression: str, seconds: float = 30.0) -> Any:
        """The value of an expression as soon as it is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(f"return {expression};")):
            if time.monotonic() > until:
                raise TimeoutError(f"after {seconds:g} s still not true: {expression}")
            time.sleep(0.1)
        return value

    def picture(self) -> bytes:
        """What is to be seen of the page, a png."""
        return base64.b64decode(self.do("WebDriver:TakeScreenshot", {"full": False})["value"])

    def _receive(self) -> Any:
        while b":" not in self.unread:
            self.unread += self._more()
        length, _, rest = self.unread.partition(b":")
        while len(rest) < int(length):
            rest += self._more()
        self.unread = rest[int(length) :]
        return json.loads(rest[: int(length)])

    def _more(self) -> bytes:
        more = self.connection.recv(2**16)
        if not more:
            raise ConnectionError("Firefox has ended")
        return more


def firefox_path() -> str | None:
    """Where the browser is, if there is one."""
    return os.environ.get("DMM_FIREFOX") or shutil.which("firefox-esr") or shutil.which("firefox")


@contextlib.contextmanager
def firefox(path: str, folder: Path) -> Iterator[Firefox]:
    """A browser with a new profile in this folder, without a screen; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "user.js").write_text(PREFERENCES.format(port=port))
    home = {"HOME": str(folder), "MOZ_HEADLESS": "1", "MOZ_DISABLE_CONTENT_SANDBOX": "1"}
    command = [path, "--headless", "--marionette", "--profile", str(folder), "--no-remote"]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | home, stdout=log, stderr=log)
    try:
        with _connected(port, process) as connection:
            connection.settimeout(120)
            yield Firefox(connection)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _connected(port: int, process: subprocess.Popen[bytes]) -> socket.socket:
    until = time.monotonic() + START
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=START)
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.2)
