"""Debian's Chromium without a window, driven by its DevTools protocol: what a person would see and do in a page."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

SCREENSHOTS = Path(__file__).parents[1] / "artifacts/screenshots"
"""Where tests leave what they saw, for people to look at."""

_KEYS = {"Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, ""), "Backspace": ("Backspace", 8, ""), " ": ("Space", 32, " ")}
_KEYS |= {"ArrowLeft": ("ArrowLeft", 37, ""), "ArrowRight": ("ArrowRight", 39, "")}

CONTRAST = """
(() => {
  // Relative luminance and contrast ratio: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
  const parse = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return {rgb: [r, g, b], a}; };
  const linear = (level) => { const c = level / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const luminance = (rgb) => 0.2126 * linear(rgb[0]) + 0.7152 * linear(rgb[1]) + 0.0722 * linear(rgb[2]);
  const over = (top, under) => top.rgb.map((level, i) => level * top.a + under[i] * (1 - top.a));
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!hasText || !element.checkVisibility()) continue;
    const under = ground(element);
    const text = over(parse(getComputedStyle(element).color), under);
    const [light, dark] = [luminance(text), luminance(under)].sort((a, b) => b - a);
    found.push({text: element.textContent.trim().slice(0, 40), ratio: (light + 0.05) / (dark + 0.05)});
  }
  return found;
})()
"""
"""Every visible text with the contrast ratio of its computed colours; values in sRGB, as Chromium computes them."""


class Page:
    """A tab. Methods wait until what they asked for is done."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._last = loop, socket, 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._run(self._call(method, params))

    def goto(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, script: str) -> Any:
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, condition: str, *, seconds: float = 20) -> None:
        """Until ``condition`` is true in the page."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never: {condition}; the page says: {self.evaluate('document.body.innerText')!r}"
            time.sleep(0.03)

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def media(self, **features: str) -> None:
        """``prefers_color_scheme="dark"``, for one."""
        values = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=values)

    def press(self, key: str) -> None:
        code, number, text = _KEYS.get(key, (f"Key{key.upper()}" if key.isalpha() else f"Digit{key}", ord(key[0].upper()), key))
        named = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def tap(self, selector: str) -> None:
        """With a finger, in the middle of an element."""
        x, y = self._middle(selector)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def click(self, selector: str) -> None:
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(data))

    def tab_stops(self) -> list[str]:
        """What Tab reaches from the top of the page, by id or tag, until it comes round."""
        self.evaluate("document.activeElement.blur(); getSelection().removeAllRanges(); window.scrollTo(0, 0)")
        stops: list[str] = []
        for _ in range(100):
            self.press("Tab")
            stop = self.evaluate("document.activeElement.id || document.activeElement.tagName.toLowerCase()")
            if stop in stops or stop == "body":
                return stops
            stops.append(stop)
        raise AssertionError(f"Tab never comes round: {stops}")

    def _middle(self, selector: str) -> tuple[float, float]:
        box = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{box}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y = self.evaluate(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box}.getBoundingClientRect())")
        return x, y

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, 30))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == self._last:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self.events.append(message)


class Browser:
    """A running Chromium; every tab is of one profile, as a person's tabs are."""

    def __init__(self, loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession, address: str) -> None:
        self._loop, self._session, self._address = loop, session, address

    def tab(self, url: str | None = None) -> Page:
        page = Page(self._loop, self._loop.run_until_complete(self._open()))
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        if url is not None:
            page.goto(url)
        return page

    async def _open(self) -> aiohttp.ClientWebSocketResponse:
        async with self._session.put(f"{self._address}/json/new?about:blank") as response:
            target = json.loads(await response.text())
        return await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Chromium with its profile in ``folder``. Ends the session where it is not installed, as the marker ``debian`` has it."""
    program = shutil.which("chromium")
    if program is None:
        pytest.exit("the pages' tests need Debian's package chromium", returncode=2)
    options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", "--no-first-run", "--disable-gpu"]
    options += ["--no-sandbox"] if os.getuid() == 0 else []  # as root there is none to be had; what is opened is ours
    options += ["--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars", f"--download-default-directory={folder}"]
    process = subprocess.Popen([program, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    session = None
    try:
        address = _address(folder / "profile/DevToolsActivePort", process)
        session = loop.run_until_complete(_session())
        yield Browser(loop, session, address)
    finally:
        if session is not None:
            loop.run_until_complete(session.close())
        loop.close()
        process.kill()
        process.wait()


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(trust_env=False)


def _address(port_file: Path, process: subprocess.Popen[bytes]) -> str:
    for _ in range(1200):
        assert process.poll() is None, "Chromium ended at once"
        if port_file.is_file() and len(lines := port_file.read_text().splitlines()) == 2:
            return f"http://127.0.0.1:{lines[0]}"
        time.sleep(0.05)
    raise AssertionError("Chromium never said where it listens")
