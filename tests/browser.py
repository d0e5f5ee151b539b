"""Headless Chromium, driven by its own WebDriver: enough of it to look at a page."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
]  # fmt: skip


def chromium() -> str | None:
    """The browser, where it and its driver are installed."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    return found if shutil.which("chromedriver") else None


@dataclass
class Browser:
    """One window."""

    http: httpx.Client
    session: str

    def command(self, method: str, path: str, body: Any = None) -> Any:
        """A WebDriver command; what it gives back."""
        response = self.http.request(method, f"/session/{self.session}{path}", json=body if method == "POST" else None)
        value = response.json()["value"]
        assert response.status_code == 200, value
        return value

    def open(self, url: str) -> None:
        """Go to a page."""
        self.command("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.command("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """The text of an element."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        found = self.command("POST", "/element", {"using": "css selector", "value": selector})
        self.command("POST", f"/element/{next(iter(found.values()))}/value", {"text": text})

    def wait(self, script: str, seconds: float = 20.0) -> Any:
        """Until a script returns something true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"in vain: {script}"
            time.sleep(0.1)
        return value

    def errors(self) -> list[str]:
        """What the page complained about."""
        log = self.command("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]

    def picture(self) -> bytes:
        """A PNG of the window."""
        return base64.b64decode(self.command("GET", "/screenshot"))


@contextmanager
def browser(width: int = 1280, height: int = 800, scale: float = 1) -> Iterator[Browser]:
    """A window until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert driver.stdout is not None
        try:
            line = next(line for line in driver.stdout if "started successfully on port" in line)
            port = line.split("port ")[1].strip(" .\n")
            arguments = [*ARGUMENTS, f"--user-data-dir={folder}", f"--window-size={width},{height}"]
            arguments += [f"--force-device-scale-factor={scale}"]
            options = {"binary": chromium(), "args": arguments}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
                answer = http.post("/session", content=json.dumps({"capabilities": {"alwaysMatch": wanted}}))
                value = answer.json()["value"]
                assert "sessionId" in value, value
                window = Browser(http, value["sessionId"])
                try:
                    yield window
                finally:
                    http.delete(f"/session/{window.session}")
        finally:
            driver.terminate()
            driver.wait(10)
            driver.stdout.close()
