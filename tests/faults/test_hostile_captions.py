"""F28: captions that would be markup, addresses, directions of writing or floods, on every page that shows captions."""

import csv
import json
import random
import re
from pathlib import Path

import pytest
import torch

from rglcd.errors import InputError
from rglcd.evaluation.contact_sheet import contact_sheet
from rglcd.evaluation.measurement import Sampler
from rglcd.evaluation.pages import report_html
from rglcd.evaluation.pictures import grid_png
from rglcd.evaluation.prompt_sets import read_prompt_set
from rglcd.evaluation.report_data import report_data
from rglcd.evaluation.run_comparison import compare_runs
from rglcd.evaluation.run_comparison_page import as_text, page_html
from rglcd.evaluation.score_tables import OTHER_VALUES, read_score_table, write_score_table
from rglcd.study.build import LONGEST_PROMPT, build
from rglcd.study.raters import with_raters
from rglcd.study.sources import Drawn
from rglcd.study.static_export import export_static
from tests.evaluation.fixtures import comparison, constant, pictures, provenance
from tests.evaluation.test_look_report import record_in
from tests.evaluation.test_looks import GOOD
from tests.evaluation.test_pages import Reader
from tests.evaluation.test_run_comparison import run_of
from tests.faults.rounds import Trial
from tests.study.studies import design, picture

_CAPTIONS = 8
_PIECES = (
    *(
        "<script>alert(1)</script>",
        "<img src=http://x.example/ onerror=alert(1)>",
        "</td></table>",
        "</style><style>*{display:none}",
        "<!--",
    ),
    *(
        "-->",
        "]]>",
        "<svg/onload=alert(1)>",
        "' onclick='alert(1)",
        '" onmouseover="alert(1)',
        "</title>",
        "</script>",
        "<base href=//x.example>",
    ),
    *("javascript:alert(1)", "data:text/html,<script>alert(1)</script>", "url(//x.example/a.png)", "@import '//x.example'", "{{ 7 * 7 }}"),
    *(
        "{% include 'style.css' %}",
        "&lt;b&gt;",
        "&#60;b&#62;",
        "&NewLine;",
        "\u202e",
        "\u2066\u202d",
        "\u2028",
        "\u200b",
        "\x00",
        "\x08",
        "\x1b[31m",
    ),
    *("\r", "\n", "\t", "\x7f", "\ufeff", "\ufffe", "=HYPERLINK(1)", "|", "`", "*", "\\", "é", "😀", "a picture"),
)
_SHOWN_AS_TEXT = ("alt", "aria-label", "title")
"""Attributes that hold other people's words."""


def hostile(rng: random.Random) -> str:
    """Never blank: that is no caption."""
    text = "".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 5)))
    return f"{text}{rng.choice(['', 'x' * 100_000, '<b>' * 30_000]) if rng.random() < 0.2 else ''}.{rng.random()}"


@pytest.mark.fault(
    "F28",
    fault="eight captions of markup, scripts, addresses, style sheets, templates, signs of terminals and tables, overrides of direction, "
    "NUL, or 100,000 characters, read from a list of prompts; and half a character",
    must="on the report, the page of two runs and a study's pages every element, address, class and style is that of plain captions, and "
    "each caption's beginning is text; tables and terminals get nothing to obey; half a character is refused by file and line",
    unit="eights of captions",
    num_rounds=10,
    sample=(0,),
)
def test_captions_are_text_on_every_page(trial: Trial, tmp_path: Path) -> None:
    rng = trial.rng()
    captions = [hostile(rng) for _ in range(_CAPTIONS)]
    given = _read(captions, tmp_path)
    plain = [f"caption {number}" for number in range(_CAPTIONS)]
    pages = _pages(given, tmp_path / "hostile"), _pages(plain, tmp_path / "plain")
    for name, page in pages[0].items():
        assert _skeleton(page) == _skeleton(pages[1][name]), name
        assert len(page) < len(pages[1][name]) + 400_000, f"{name}: long captions are cut"
    for name in ("report", "two runs"):
        text = Reader(pages[0][name]).text
        assert [caption for caption in given if caption[:200].replace("\r", "\n") not in text.replace("\r", "\n")] == [], name
    _check_table(given, tmp_path / "scores.csv")
    grid_png({Sampler("rg", 2): contact_sheet(torch.zeros(len(given), 3, 16, 16, dtype=torch.uint8))}, given, side=16).save(
        tmp_path / "grid.png"
    )
    trial.record(f"{captions[0][:60]!r} and seven more: text on {len(pages[0])} pages")


def _read(captions: list[str], folder: Path) -> list[str]:
    """``captions`` out of a list of prompts, as ``evaluate`` gets them; half a character is refused there."""
    file = folder / "photo.json"
    file.write_text(json.dumps([*captions, "half of \ud83d"]), encoding="ascii")
    with pytest.raises(InputError, match=rf"photo\.json line {len(captions) + 1}: the prompt holds \\ud83d, half of a character"):
        read_prompt_set(file, "hpsv2")
    file.write_text(json.dumps(captions), encoding="ascii")
    given = read_prompt_set(file, "hpsv2").texts
    assert given == captions
    return given


def _pages(captions: list[str], folder: Path) -> dict[str, str]:
    """Every page that shows captions: with the same pictures and numbers for any."""
    folder.mkdir()
    found = comparison({**constant(0.7, "expert"), **constant(0.7, "judge")})
    looks = {"rg": record_in(folder / "looks", GOOD, prompts=tuple(captions[:4]))}
    report = report_data(found, pictures=pictures(captions), provenance=provenance(), curves={}, looks=looks)
    many = tuple(captions[number % len(captions)] for number in range(60))
    two = compare_runs(run_of("a", captions=many), run_of("b", captions=many, shift=0.5), settings=[])
    assert "\x1b" not in as_text(two)
    assert "\u202e" not in as_text(two)
    return {"report": report_html(report), "two runs": page_html(two), **_study_pages(captions, folder)}


def _study_pages(captions: list[str], folder: Path) -> dict[str, str]:
    """The rater's page from disk and its script: captions are in the script alone, as JSON of ASCII letters."""
    arms = {arm: [picture(100 * place + row).copy for row in range(len(captions))] for place, arm in enumerate(("one", "two"))}
    study = build(folder / "study", Drawn(captions, arms, []), design(num_checks=0))
    (page,) = export_static(folder / "study", study, with_raters(folder / "study", 1, simulated=False), folder / "static")
    script = page.with_suffix(".js").read_text(encoding="ascii")
    given = json.loads(script.removeprefix("window.RGLCD_STUDY = ").removesuffix(";\n"))
    assert sorted(task["prompt"] for task in given["tasks"]) == sorted(caption[:LONGEST_PROMPT] for caption in captions)
    return {"study": page.read_text(encoding="utf-8").replace(page.stem, "TOKEN")}


def _skeleton(page: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """Elements with their attributes, but for what is text; the blind view's order is drawn by caption."""

    def told(name: str, value: str | None) -> str | None:
        return None if name in _SHOWN_AS_TEXT else re.sub(r"(--blind:|\bq|^z)\d+", r"\1N", value or "")

    return [(tag, [(name, told(name, value)) for name, value in attributes.items()]) for tag, attributes in Reader(page).tags]


def _check_table(captions: list[str], path: Path) -> None:
    """No cell that a program for tables would run, and each caption read back, to the length that is kept."""
    values = constant(0.5, *OTHER_VALUES, count=len(captions))
    write_score_table(path, constant(0.5, "judge", count=len(captions)), values, captions)
    with path.open(encoding="utf-8", newline="") as stream:
        assert not [row[-1] for row in csv.reader(stream) if row[-1][:1] in "=+-@\t\r"]
    assert read_score_table(path).captions == tuple(caption[:10_000] for caption in captions)
