"""The report's page in Debian's Chromium, by mouse, touch and keys, with scripts forbidden as Kubeflow's frame forbids them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rglcd.evaluation.pages import report_html
from rglcd.evaluation.report_data import report_data
from tests.browser import CONTRAST, Page, chromium
from tests.evaluation.fixtures import comparison, constant, pictures, provenance
from tests.evaluation.test_pages import HOSTILE, distances

pytestmark = pytest.mark.debian

CAPTIONS = [*HOSTILE, *(f"prompt {number}" for number in range(4))]
ENLARGED = "[...document.querySelectorAll('.gallery img')].filter((each) => each.width > 250).map((each) => each.alt)"
CHOSEN = "document.querySelector('.slot:checked')?.id ?? 'none'"


@contextmanager
def shown(folder: Path) -> Iterator[Page]:
    found = comparison({**constant(0.7, "expert"), **constant(0.7, "judge")})
    made = report_data(found, pictures=pictures(CAPTIONS), provenance=provenance(), curves=distances("lcm", "rg"))
    (folder / "index.html").write_text(report_html(made), encoding="utf-8")
    with chromium(folder) as browser:
        page = browser.tab((folder / "index.html").as_uri())
        page.resize(1280, 900)
        yield page


def test_pictures_are_enlarged_one_after_another_by_mouse_and_by_keys(tmp_path: Path) -> None:
    with shown(tmp_path) as page:
        assert page.evaluate(ENLARGED) == []
        page.click(".p7 .in-order")
        assert (page.evaluate(CHOSEN), page.evaluate(ENLARGED)) == ("z7", ["LCM, 2 steps"])
        page.screenshot("report-enlarged")
        page.press("ArrowRight")
        assert page.evaluate(CHOSEN) == "z8"
        page.click("#z8 + .bar label:last-child")
        page.click("#z9 + .bar label:first-child")
        assert page.evaluate(CHOSEN) == "z8"
        page.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "close"
        page.press("Enter")
        assert (page.evaluate(CHOSEN), page.evaluate(ENLARGED)) == ("none", [])
        page.tap(".p0 .in-order")
        assert page.evaluate(CHOSEN) == "z0"
        page.press("ArrowLeft")
        assert page.evaluate(CHOSEN) == "none"


def test_blind_view_hides_names_and_scores_and_shuffles_what_is_enlarged_too(tmp_path: Path) -> None:
    visible = "[...document.querySelectorAll('.gallery :is(.name, .score, thead th)')].filter((each) => each.checkVisibility()).length"
    order = "[...document.querySelectorAll('.pictures')].map((row) => [...row.querySelectorAll('img')].map((each) => each.x))"
    with shown(tmp_path) as page:
        page.click("#blind")
        assert page.evaluate(visible) == 0
        assert page.evaluate(order) != [sorted(row) for row in page.evaluate(order)]
        page.click("figure.q0 .shuffled")
        (first,) = page.evaluate(ENLARGED)
        assert first == page.evaluate("document.querySelector('.q0 img').alt")
        assert page.evaluate(visible) == 0
        page.press("ArrowRight")
        assert page.evaluate(ENLARGED) == [page.evaluate("document.querySelector('.q1 img').alt")]
        page.click(".slot:checked + .bar button")
        before = page.evaluate(order)
        page.click("#told")
        assert page.evaluate(visible) == 2 * 5 * len(CAPTIONS)
        assert page.evaluate(order) == before
        page.screenshot("report-told")


def test_page_fits_every_width_is_legible_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    with shown(tmp_path) as page:
        for width in (320, 400, 800, 1280, 1600):
            page.resize(width, 900)
            for view in ("open", "blind", "told"):
                page.evaluate(f"document.querySelector('#{view}').click()")
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{width} pixels, {view}"
            page.screenshot(f"report-{width}")
        for scheme in ("light", "dark"):
            page.media(prefers_color_scheme=scheme)
            page.evaluate("for (const each of document.querySelectorAll('svg text')) each.style.color = getComputedStyle(each).fill")
            faint = [found for found in page.evaluate(CONTRAST) if found["ratio"] < 4.5]
            assert not faint, scheme
            page.evaluate("for (const each of document.querySelectorAll('svg text')) each.style.color = ''")
        page.evaluate("document.querySelector('#open').click()")
        assert page.tab_stops()[:3] == ["open", "z", "div"], "views, pictures, and the pictures' scrolling frame"
        asked = [event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_zoom_and_blind_view_work_in_a_frame_without_scripts(tmp_path: Path) -> None:
    with shown(tmp_path) as page:
        text = (tmp_path / "index.html").read_text(encoding="utf-8")
        page.goto("data:text/html,<title>a frame of Kubeflow's</title>")
        page.evaluate(
            'document.body.innerHTML = \'<iframe sandbox="allow-same-origin" style="width: 1200px; height: 850px"></iframe>\';'
            f"document.querySelector('iframe').srcdoc = {json.dumps(text)}"
        )
        page.wait_for("document.querySelector('iframe').contentDocument.querySelector('#run')")
        within = "document.querySelector('iframe').contentDocument.querySelector"
        for selector, then in (("#blind", "#blind:checked"), (".q2 .shuffled", "#z2:checked"), ("#z2:checked + .bar button", "#z:checked")):
            page.evaluate(f"{within}('{selector}').scrollIntoView({{block: 'center'}})")
            box = page.evaluate(
                f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({within}('{selector}').getBoundingClientRect())"
            )
            left, top = page.evaluate("(({x, y}) => [x, y])(document.querySelector('iframe').getBoundingClientRect())")
            for kind in ("mousePressed", "mouseReleased"):
                page.call("Input.dispatchMouseEvent", type=kind, x=left + 2 + box[0], y=top + 2 + box[1], button="left", clickCount=1)
            page.wait_for(f"{within}('{then}')")
