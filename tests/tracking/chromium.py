"""A headless Chromium, driven over its DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

WINDOW_PX = (1600, 2400)
START_WITHIN_S = 60


class Chromium:
    """A browser with one page; use it in an ``async with`` block.

    Args:
        profile: an empty folder.
    """

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._numbers = itertools.count(1)

    @staticmethod
    def path() -> str | None:
        """The program, or none where there is none on this machine."""
        return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

    async def __aenter__(self) -> "Chromium":
        command = [str(self.path()), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [
            "--remote-debugging-port=0",
            f"--user-data-dir={self._profile}",
            "--hide-scrollbars",
            "--no-first-run",
        ]
        command += [f"--window-size={WINDOW_PX[0]},{WINDOW_PX[1]}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{self._port()}/json/list") as answer:
            pages = [page for page in await answer.json() if page["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._socket.close()
        await self._session.close()
        self._process.kill()
        self._process.wait()

    def _port(self) -> int:
        note, deadline = self._profile / "DevToolsActivePort", time.monotonic() + START_WITHIN_S
        while not (note.is_file() and note.read_text().strip()):
            assert time.monotonic() < deadline, "Chromium does not start"
            assert self._process.poll() is None, "Chromium ended"
            time.sleep(0.05)
        return int(note.read_text().splitlines()[0])

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        number = next(self._numbers)
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads((await self._socket.receive()).data)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    async def open(self, address: str) -> None:
        """Go to a page. It may still be loading afterwards."""
        await self.call("Page.navigate", url=address)

    async def ask(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, script: str, within_s: float) -> Any:
        """The value of an expression once it is true; the last one if it never is."""
        deadline = time.monotonic() + within_s
        while not (value := await self.ask(script)) and time.monotonic() < deadline:
            await self.call("Runtime.evaluate", expression="new Promise(r => setTimeout(r, 200))", awaitPromise=True)
        return value

    async def screenshot(self, file: Path) -> None:
        """What the window shows, as PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(answer["data"]))
