"""The rater's page in Debian's Chromium: at any width, by keys, mouse and finger, in two tabs, with a dead server and with none."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from rglcd.cli import main
from rglcd.study.ballots import Vote
from rglcd.study.build import build
from rglcd.study.raters import read_raters, with_raters
from rglcd.study.records import Question, Study
from rglcd.study.score import score
from rglcd.study.sources import Drawn
from rglcd.study.static_export import export_static
from rglcd.study.vote_log import VOTES, read_log
from tests.browser import CONTRAST, Browser, Page, chromium
from tests.study.studies import design, picture

pytestmark = pytest.mark.debian
HOSTILE = [
    "<script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'>",
    "</script><svg onload=window.harmed=1>",
    "\u202eright to left, never ended",
    "\u2066\u202e\u2067 isolates and overrides",
    "javascript:window.harmed=1//\u2028\u0000\u0008",
    "x" * 900,
    "a quiet street after the rain, lamps reflected in puddles, a cyclist passing, oil on canvas",
]
WIDTHS = ((320, 568), (390, 844), (800, 600), (1280, 800), (1600, 900))
SHOWN = "document.querySelector('#right img') && document.querySelector('#tie').getAttribute('aria-disabled') === 'false'"
WHERE = "document.querySelector('#where').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


class Live:
    """A study of eight prompts, most of them hostile, with a server that can be killed and started again on its port."""

    def __init__(self, root: Path) -> None:
        arms = {
            arm: [picture(100 * place + row, 96).copy for row in range(len(HOSTILE))] for place, arm in enumerate(("secret-a", "secret-b"))
        }
        drawn = Drawn(HOSTILE, arms, [("a whole picture", picture(900, 96).copy)])
        self.folder, self.port, self.server = root / "study", 0, None
        asked = [Question.PREFERENCE, Question.ALIGNMENT]
        self.study: Study = build(self.folder, drawn, design(questions=asked, num_checks=1))
        self.links: list[str] = []

    def start(self) -> None:
        command = [sys.executable, "-m", "rglcd", "ab", "serve", str(self.folder), "--raters", "2", "--port", str(self.port)]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        lines = [self.server.stdout.readline() for _ in range(3)]
        self.links = re.findall(r"http://\S+", "".join(lines))
        self.port = int(self.links[0].split(":")[2].split("/")[0])

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        assert self.server is not None
        self.server.send_signal(how)
        self.server.wait()

    def votes(self) -> list[Vote]:
        entries = read_log(self.folder / VOTES, read_raters(self.folder)).entries
        return [entry for entry in entries if isinstance(entry, Vote)]


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    study = Live(tmp_path)
    study.start()
    yield study
    study.end()


def shown(page: Page) -> Page:
    page.wait_for(SHOWN)
    return page


def answered(page: Page, key: str) -> None:
    """Press ``key`` and wait for the next question."""
    before = page.evaluate(WHERE)
    page.press(key)
    page.wait_for(f"{WHERE} !== {json.dumps(before)}")


def test_the_page_fits_and_can_be_read_at_every_width_in_light_and_dark(live: Live, browser: Browser) -> None:
    page = shown(browser.tab(live.links[0]))
    for scheme in ("light", "dark"):
        page.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")  # no colour on its way to another
        for width, height in WIDTHS:
            page.resize(width, height)
            page.evaluate("document.querySelector('details').open = true")
            found = page.evaluate(CONTRAST)
            assert len(found) >= 10
            worst = min(found, key=lambda one: one["ratio"])
            assert worst["ratio"] >= 4.5, f"{scheme}: {worst}"
            page.evaluate("document.querySelector('details').open = false")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            sizes = page.evaluate("[...document.querySelectorAll('#pair img, button')].map((e) => e.getBoundingClientRect().height)")
            assert min(sizes) >= 44, "a finger needs that much"
            page.screenshot(f"study-{scheme}-{width}")
    page.resize(320, 568)
    assert page.evaluate("document.querySelector('#tie').getBoundingClientRect().bottom <= innerHeight"), "no scrolling to answer"


def test_tab_reaches_every_control_and_enter_answers(live: Live, browser: Browser) -> None:
    page = shown(browser.tab(live.links[0]))
    answered(page, "1")
    page.wait_for(SHOWN)
    controls = page.evaluate("[...document.querySelectorAll('button, summary')].map((e) => e.id || e.tagName.toLowerCase())")
    stops = page.tab_stops()
    assert [stop for stop in stops if stop != "blockquote"] == controls  # a long prompt scrolls, and is a stop by itself
    page.evaluate("document.querySelector('#right').focus()")
    answered(page, "Enter")
    page.wait_for("document.querySelector('#saved').textContent === 'Saved'")
    assert [vote.answer for vote in live.votes()] == ["left", "right"]


def test_keys_mouse_and_finger_answer_and_undo(live: Live, browser: Browser) -> None:
    page = shown(browser.tab(live.links[0]))
    page.resize(390, 844)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    for number, act in enumerate(
        (lambda: page.tap("#left"), lambda: page.tap("#tie"), lambda: page.press("ArrowRight"), lambda: page.press("0"))
    ):
        act()
        page.wait_for(f"{WHERE}.startsWith('{number + 2} of')")
        page.wait_for(SHOWN)
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)
    page.press("Backspace")
    page.wait_for(f"{WHERE}.startsWith('4 of')")
    page.wait_for(SHOWN)
    page.click("#right")
    page.wait_for(f"{WHERE}.startsWith('5 of')")
    page.wait_for("document.querySelector('#saved').textContent === 'Saved'")
    assert [vote.answer for vote in live.votes()] == ["left", "tie", "right", "tie", "right"]
    assert len((live.folder / VOTES).read_text().splitlines()) == 6


def test_hostile_prompts_are_text_and_their_direction_ends_with_them(live: Live, browser: Browser) -> None:
    page, seen = shown(browser.tab(live.links[0])), set()
    total = int(page.evaluate(WHERE).split()[-1])
    for _ in range(total):
        page.wait_for(SHOWN)
        seen.add(page.evaluate("document.querySelector('#prompt').textContent"))
        assert page.evaluate("document.querySelectorAll('#prompt *').length") == 0
        assert page.evaluate("getComputedStyle(document.querySelector('#prompt')).unicodeBidi") == "isolate"
        assert "harmed" not in page.evaluate("Object.keys(window).join()")
        page.press("1")
        page.wait_for(f"document.querySelector('#end').hidden === false || {SHOWN}")
    page.wait_for("!document.querySelector('#end').hidden && document.querySelector('#saved').textContent === 'Saved'")
    page.screenshot("study-end")
    assert seen == {*HOSTILE, "a whole picture"}
    faults = [event for event in page.events if event["method"] in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening")]
    assert faults == []
    assert len(live.votes()) == total


def test_answers_given_while_the_server_is_dead_are_recorded_once_when_it_is_back(live: Live, browser: Browser) -> None:
    page = shown(browser.tab(live.links[0]))
    answered(page, "1")
    page.wait_for("document.querySelector('#saved').textContent === 'Saved'")
    live.end()
    page.wait_for(SHOWN)
    answered(page, "2")  # the pictures of a few more are there already
    page.wait_for("document.querySelector('#saved').textContent.startsWith('No connection')")
    closed = page.evaluate("Object.keys(localStorage).length")
    assert closed == 1, "what is not recorded is kept in the browser"
    live.start()
    page.wait_for("document.querySelector('#saved').textContent === 'Saved'")
    assert page.evaluate("Object.keys(localStorage).length") == 0
    assert [vote.answer for vote in live.votes()] == ["left", "right"]
    again = shown(browser.tab(live.links[0]))
    assert again.evaluate(WHERE).startswith("3 of")


@contextmanager
def proxy_alone(port: int, status: int) -> Iterator[None]:
    """What a tunnel or an ingress answers while nothing is behind it: a page of its own, with any status."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b"<html>nothing is here</html>"
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


@pytest.mark.parametrize("status", [200, 403, 404])
def test_what_a_proxy_says_while_the_server_is_away_settles_no_answer(live: Live, browser: Browser, status: int) -> None:
    page = shown(browser.tab(live.links[0]))
    live.end()
    with proxy_alone(live.port, status):
        page.press("1")
        page.wait_for("document.querySelector('#saved').textContent.startsWith('No connection')")
        assert page.evaluate("Object.keys(localStorage).length") == 1
    live.start()
    page.wait_for("document.querySelector('#saved').textContent === 'Saved'")
    assert [vote.answer for vote in live.votes()] == ["left"]


def test_an_answer_that_was_not_recorded_when_its_tab_was_closed_is_sent_by_the_next(live: Live, browser: Browser) -> None:
    page = shown(browser.tab(live.links[0]))
    live.end()
    page.press("1")
    page.wait_for("document.querySelector('#saved').textContent.startsWith('No connection')")
    page.call("Page.close")
    live.start()
    again = browser.tab(live.links[0])
    again.wait_for(f"{WHERE}.startsWith('2 of')")
    assert [vote.answer for vote in live.votes()] == ["left"]


def test_of_two_tabs_the_second_says_that_the_first_has_answered(live: Live, browser: Browser) -> None:
    first, second = shown(browser.tab(live.links[0])), shown(browser.tab(live.links[0]))
    answered(first, "1")
    first.wait_for("document.querySelector('#saved').textContent === 'Saved'")
    second.call("Page.bringToFront")
    second.press("2")
    second.wait_for("document.querySelector('#message').textContent.includes('answered already')")
    assert second.evaluate(WHERE).startswith("2 of")
    assert [vote.answer for vote in live.votes()] == ["left"]


def test_a_key_held_down_answers_once(live: Live, browser: Browser) -> None:
    page = shown(browser.tab(live.links[0]))
    for _ in range(5):
        page.call("Input.dispatchKeyEvent", type="keyDown", key="1", code="Digit1", windowsVirtualKeyCode=49, text="1", autoRepeat=True)
    time.sleep(0.3)
    assert page.evaluate(WHERE).startswith("1 of")


def test_nothing_moves_for_who_wants_no_motion(live: Live, browser: Browser) -> None:
    page = shown(browser.tab(live.links[0]))
    for preference, seconds in (("reduce", "0s"), ("no-preference", "0.1s")):
        page.media(prefers_reduced_motion=preference)
        assert page.evaluate("getComputedStyle(document.querySelector('#tie')).transitionDuration").split(",")[0] == seconds


def test_a_static_study_opens_from_disk_keeps_answers_and_gives_them_as_a_file(live: Live, browser: Browser, tmp_path: Path) -> None:
    (page_file,) = export_static(live.folder, live.study, with_raters(live.folder, 1, simulated=False), tmp_path / "static")
    page = shown(browser.tab(page_file.as_uri()))
    answered(page, "1")
    answered(page, "2")
    page.press("u")
    page.wait_for(f"{WHERE}.startsWith('2 of')")
    page.call("Page.reload")
    page.wait_for(f"{SHOWN} && {WHERE}.startsWith('2 of')")
    total = int(page.evaluate(WHERE).split()[-1])
    for _ in range(total - 1):
        page.wait_for(SHOWN)
        page.press("2")
    page.wait_for("!document.querySelector('#end').hidden")
    assert "harmed" not in page.evaluate("Object.keys(window).join()")
    page.screenshot("study-static-end")
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("#download")
    for _ in range(200):
        if files := list(tmp_path.glob("answers-*.jsonl")):
            break
        time.sleep(0.05)
    found = score(live.folder, files, half_width=0.05, seed=0)
    assert found.num_votes + sum(one.answered for one in found.attention) == total
    assert [one["method"] for one in page.events if one["method"] == "Runtime.exceptionThrown"] == []
    assert main(["ab", "score", str(live.folder), *map(str, files)]) == 0
