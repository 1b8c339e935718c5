"""A measurement on disk: a table of scores that people open, and the same numbers when it is read back."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rglcd.evaluation.measurement import load, reuse, save
from rglcd.evaluation.score_tables import LONGEST_CAPTION
from tests.evaluation.fixtures import NUM_IMAGES, measurement

SCORES = {"judge": [index / 7 for index in range(NUM_IMAGES)], "saturation": [1 / 3 - index * 1e-9 for index in range(NUM_IMAGES)]}
"""A scorer may have the name of another column."""

CAPTIONS = [
    '=HYPERLINK("http://example.com")',
    "a, b",
    'said "c"',
    "two\nlines",
    "carriage\rreturn",
    "nul \x00",
    "-1",
    "x" * 300_000,
    "'=its own",
]
CAPTIONS += ["a red circle"] * (NUM_IMAGES - len(CAPTIONS))
MEASURED = replace(measurement("rg", 2, SCORES), captions=CAPTIONS)


def saved(folder: Path) -> None:
    sheet = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    save(folder, MEASURED, key="k", sheet=sheet, records=None)


def test_what_is_saved_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    saved(tmp_path / "rg-2")
    assert load(tmp_path / "rg-2", key="k") == replace(MEASURED, captions=[caption[:LONGEST_CAPTION] for caption in CAPTIONS])
    assert load(tmp_path / "rg-2", key="another") is None
    assert load(tmp_path / "absent", key="k") is None


def test_scores_are_a_table_with_a_row_for_each_image(tmp_path: Path) -> None:
    saved(tmp_path / "rg-2")
    with (tmp_path / "rg-2" / "scores.csv").open(newline="", encoding="utf-8") as stream:
        head, *rows = csv.reader(stream)
    assert head == ["image", "judge", "saturation", "high_frequency", "saturation", "caption"]
    assert [row[0] for row in rows] == [str(number) for number in range(NUM_IMAGES)]
    assert [float(row[1]) for row in rows] == SCORES["judge"]
    assert rows[1][-1] == "a, b"
    assert rows[3][-1] == "two\nlines"


def test_no_caption_is_a_formula_in_the_table(tmp_path: Path) -> None:
    saved(tmp_path / "rg-2")
    with (tmp_path / "rg-2" / "scores.csv").open(newline="", encoding="utf-8") as stream:
        captions = [row[-1] for row in csv.reader(stream)]
    assert not [caption for caption in captions if caption[:1] in "=+-@"]
    assert captions[1] == '\'=HYPERLINK("http://example.com")'


def test_times_stand_in_the_file_that_no_digest_covers(tmp_path: Path) -> None:
    for name, seconds in (("one", 1.0), ("other", 2.0)):
        timed = replace(MEASURED, seconds_per_image=seconds, rate_seconds_per_image=seconds, total_seconds=seconds)
        save(tmp_path / name, timed, key="k", sheet=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), records=None)
    files = {path.name for path in (tmp_path / "one").iterdir()}
    differing = {name for name in files if (tmp_path / "one" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()}
    assert differing == {"speed.json"}


@pytest.mark.parametrize(("key", "is_reused"), [("k", True), ("another", False)])
def test_a_measurement_of_the_same_computation_is_reused(tmp_path: Path, key: str, is_reused: bool) -> None:
    saved(tmp_path / "before")
    reuse(tmp_path / "now", tmp_path / "before", key=key)
    assert (load(tmp_path / "now", key=key) is not None) is is_reused
