"""The page's section on what was seen while the arms trained."""

from pathlib import Path

import numpy as np
from PIL import Image

from rglcd.evaluation.look_report import look_report
from rglcd.evaluation.looks import TEACHERS, About, Look, Record, read_record, strip_name, write_about, write_looks
from rglcd.evaluation.pages import report_html
from rglcd.evaluation.report_data import report_data
from tests.evaluation.fixtures import comparison, constant, pictures, provenance
from tests.evaluation.test_looks import GOOD, HACKED
from tests.evaluation.test_pages import HOSTILE, Reader

PROMPTS = ("a red circle", "a blue square", "a cat", "a dog")


def record_in(
    folder: Path, looks: list[Look], *, prompts: tuple[str, ...] = PROMPTS, trained_on: str | None = "expert", side: int = 16
) -> Record:
    folder.mkdir()
    write_about(folder, About(prompts, 2, 2, 25, 7.5, trained_on, ("judge",), 10, 0.01, GOOD[0].figures))
    write_looks(folder, looks)
    noise = np.random.default_rng(0)
    for name in (TEACHERS, *(strip_name(look.step) for look in looks)):
        pixels = noise.integers(0, 256, (side, len(prompts) * side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    record = read_record(folder)
    assert record is not None
    return record


def page(records: dict[str, Record]) -> str:
    found = comparison({**constant(0.7, "expert"), **constant(0.7, "judge")})
    return report_html(report_data(found, pictures=pictures(["a"]), provenance=provenance(), curves={}, looks=records))


def test_the_page_shows_every_figure_over_the_training_and_the_pictures_of_its_looks(tmp_path: Path) -> None:
    reader = Reader(page({"rg": record_in(tmp_path / "rg", GOOD), "lcm": record_in(tmp_path / "lcm", GOOD, trained_on=None)}))
    assert "RG-LCM: 2 looks, one every 10 steps, took 1 s; reward hacking was not suspected." in reader.text
    assert "LCM: 2 looks, one every 10 steps, took 1 s; no reward guided it." in reader.text
    for title in ("expert", "judge", "Distance to the teacher", "Diversity", "Fine detail", "Colour"):
        assert title in reader.text
    shown = [attributes["alt"] for tag, attributes in reader.tags if tag == "img" and "step " in (attributes["alt"] or "")]
    assert shown[:2] == ["RG-LCM, step 10: a red circle", "RG-LCM, step 20: a red circle"]
    assert len(shown) == 2 * 4 * 2
    assert "script" not in {tag for tag, _ in reader.tags}


def test_a_suspicion_stands_on_the_page_with_the_step_that_it_first_arose_at(tmp_path: Path) -> None:
    text = page({"rg": record_in(tmp_path / "rg", [*GOOD, *HACKED])})
    assert "After step 50, reward hacking suspected: expert has risen since step 20" in text


def test_a_page_of_a_training_that_nobody_looked_at_has_no_such_section(tmp_path: Path) -> None:
    assert look_report({}) is None
    assert look_report({"rg": record_in(tmp_path / "rg", [])}) is None
    assert 'id="looks"' not in page({})
    assert read_record(tmp_path / "nowhere") is None


def test_prompts_are_text_and_nothing_else(tmp_path: Path) -> None:
    reader = Reader(page({"rg": record_in(tmp_path / "rg", GOOD, prompts=tuple(HOSTILE))}))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert HOSTILE[0] in reader.text


def test_many_looks_at_large_noisy_pictures_make_no_large_page(tmp_path: Path) -> None:
    looks = [Look(10 * k, 80 * k, GOOD[0].figures, 0.1) for k in range(1, 13)]
    report = look_report({"rg": record_in(tmp_path / "rg", looks, prompts=tuple(map(str, range(12))), side=128)})
    assert report is not None
    (strip,) = report.strips
    assert (strip.columns[1], strip.columns[-1], len(strip.columns)) == ("step 10", "step 120", 9)
    assert len(strip.rows) == 8
    assert sum(len(picture.uri) for _, pictures in strip.rows for picture in pictures) < 2_000_000, "of 20 MB"
