"""The page of two runs in Debian's Chromium: it fits any width, is read in light and dark, and hostile captions do nothing."""

from pathlib import Path

import pytest

from rglcd.evaluation.run_comparison_page import page_html
from tests.browser import CONTRAST, chromium
from tests.evaluation.test_run_comparison import hostile

pytestmark = pytest.mark.debian
__all__ = ["hostile"]  # a fixture


def test_the_page_fits_every_width_is_legible_and_runs_nothing(hostile, tmp_path: Path) -> None:
    page_file = tmp_path / "two.html"
    page_file.write_text(page_html(hostile), encoding="utf-8")
    with chromium(tmp_path) as browser:
        page = browser.tab(page_file.as_uri())
        for width in (320, 400, 800, 1280, 1600):
            page.resize(width, 900)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{width} pixels"
            page.screenshot(f"compare-{width}")
        for scheme in ("light", "dark"):
            page.media(prefers_color_scheme=scheme)
            faint = [found for found in page.evaluate(CONTRAST) if found["ratio"] < 4.5]
            assert not faint, scheme
        assert page.evaluate("document.querySelectorAll('script, [onerror], [onload]').length") == 0
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        asked = [event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
