"""Scorers that have no score for some prompts, and the alarm for text that no prompt quotes: in numbers, tables and verdicts."""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from rglcd.evaluation.comparable_runs import Measured, Run
from rglcd.evaluation.comparison import Comparison, compare
from rglcd.evaluation.distances import Distances
from rglcd.evaluation.measurement import REAL, TEACHER, Measurement, Sampler, load, save
from rglcd.evaluation.pages import report_html, report_markdown
from rglcd.evaluation.report_data import report_data
from rglcd.evaluation.result_files import headlines, metrics
from rglcd.evaluation.run_comparison import compare_runs
from rglcd.evaluation.run_comparison_page import as_text, page_html
from rglcd.evaluation.score_tables import ScoreTable
from rglcd.evaluation.verdict import findings, verdict
from tests.evaluation.fixtures import NUM_IMAGES, constant, measurements, pictures, provenance

NUM_QUOTING = 16
"""Of the prompts; the reader has a score for these alone."""


def reading(value: float) -> list[float]:
    return [value] * NUM_QUOTING + [math.nan] * (NUM_IMAGES - NUM_QUOTING)


def painted(num: int) -> list[float]:
    """The first ``num`` pictures hold text that nobody asked for."""
    return [1.0] * num + [0.0] * (NUM_IMAGES - num)


def read_measurements(by_student: int = 32, by_teacher: int = 4) -> list[Measurement]:
    """The judge prefers every student; the reader reads 0.9 of what 16 prompts quote, of the teacher's 0.4, of no real picture's."""
    made = measurements(constant(0.7, "judge") | {"words": reading(0.9)})
    flags = {TEACHER: by_teacher, REAL: 1}
    scores = {TEACHER: reading(0.4), REAL: [math.nan] * NUM_IMAGES, "lcm": reading(0.4)}
    return [
        replace(
            one,
            scores=one.scores | {"words": scores.get(one.sampler.who, one.scores["words"])},
            unasked_text=painted(flags.get(one.sampler.who, by_student)),
        )
        for one in made
    ]


def compared(**how: int) -> Comparison:
    labels = [{"kind": "sign" if number < NUM_QUOTING else "none"} for number in range(NUM_IMAGES)]
    return compare(read_measurements(**how), seed=0, trained_on=None, labels=labels)


def rendered(comparison: Comparison) -> tuple[str, str]:
    data = report_data(comparison, pictures=pictures(["a cat", 'a "sign"']), provenance=provenance(), curves={})
    return report_html(data), report_markdown(data)


def test_means_and_wins_are_over_the_pictures_that_have_a_score() -> None:
    focus = compared().focus
    assert focus.scores["words"].num_images == NUM_QUOTING
    assert focus.scores["words"].mean.value == pytest.approx(0.9)
    assert focus.scores["words"].win_rates[TEACHER].value == 1
    assert focus.scores["judge"].num_images == NUM_IMAGES


def test_a_scorer_that_is_silent_on_some_prompts_is_no_judge_beside_one_that_is_not() -> None:
    assert compared().judges == ["judge"]
    alone = [replace(one, scores={"words": one.scores["words"]}) for one in read_measurements()]
    assert compare(alone, seed=0, trained_on=None).judges == ["words"]
    assert "preferred" in verdict(compared())


def test_a_scorer_without_any_score_is_in_no_table_and_the_alarm_stays() -> None:
    nothing = [math.nan] * NUM_IMAGES
    silent = compare([replace(one, scores=one.scores | {"words": nothing}) for one in read_measurements()], seed=0, trained_on=None)
    assert silent.scorers == ["judge"]
    page, text = rendered(silent)
    (head,) = (line for line in text.splitlines() if "s/image" in line)
    assert "words" not in head
    assert "unasked text" in head
    assert "unasked text" in page


def test_metrics_hold_the_share_of_pictures_with_unasked_text_and_how_many_a_score_is_over() -> None:
    found = metrics(compared())
    assert found["rg"]["2"]["unasked_text"]["value"] == 0.5
    assert 0.38 < found["rg"]["2"]["unasked_text"]["low"] < found["rg"]["2"]["unasked_text"]["high"] < 0.62
    assert found["teacher"]["50"]["unasked_text"]["value"] == 0.0625
    assert found["real"]["unasked_text"]["value"] == pytest.approx(1 / 64, abs=1e-6)
    assert found["rg"]["2"]["words"]["images"] == NUM_QUOTING
    assert "images" not in found["rg"]["2"]["judge"]
    assert "words" not in found["real"]
    assert headlines(compared())["rg-2"]["unasked_text"] == 0.5
    groups = found["rg"]["2"]["groups"]["kind"]
    assert groups["by_group"]["sign"]["words"]["mean"] == pytest.approx(0.9)
    assert "words" not in groups["by_group"]["none"]
    assert groups["mean_of_groups"]["words"] == pytest.approx(0.9)


def test_words_beyond_the_teachers_are_a_finding_and_as_many_as_its_are_none() -> None:
    (sentence,) = (said for said in findings(compared()) if said.startswith("Words are painted"))
    assert sentence.startswith("Words are painted into pictures: 50 % of the student’s hold text that their prompts do not quote")
    assert sentence.endswith("6 % of the teacher’s.")
    assert not [said for said in findings(compared(by_student=4)) if said.startswith("Words are painted")]
    assert not [said for said in findings(compared(by_student=5)) if said.startswith("Words are painted")]


def test_page_and_table_have_the_share_of_every_sampler_beside_the_teachers() -> None:
    page, text = rendered(compared())
    assert not re.search(r"\bnan\b", page + text)
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")][: 2 + 2 + 4]
    column = head.split(" | ").index("unasked text")
    assert [row.split(" | ")[column].split(" [")[0] for row in rows] == ["2 %", "6 %", "50 %", "50 %", "50 %", "50 %"]
    assert f"words ({NUM_QUOTING} pictures)" in head
    assert len({row.count("|") for row in (head, *rows)}) == 1
    assert f"<i>{NUM_QUOTING} pictures</i>" in page
    assert "<td>50 %<small>" in page


def test_without_a_reader_neither_page_nor_numbers_speak_of_text() -> None:
    plain = compare(measurements(constant(0.7, "judge")), seed=0, trained_on=None)
    page, text = rendered(plain)
    assert "nasked" not in page + text
    assert "unasked_text" not in str(metrics(plain)) + str(headlines(plain))


def test_what_was_read_is_kept_in_the_table_of_scores(tmp_path: Path) -> None:
    made = next(one for one in read_measurements() if one.sampler == Sampler("rg", 2))
    save(tmp_path / "rg-2", made, key="k", sheet=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), records=None)
    with (tmp_path / "rg-2" / "scores.csv").open(newline="", encoding="utf-8") as stream:
        head, *rows = csv.reader(stream)
    assert head == ["image", "judge", "words", "high_frequency", "saturation", "caption", "unasked_text"]
    assert [float(row[-1]) for row in rows] == painted(32)
    found = load(tmp_path / "rg-2", key="k")
    assert found is not None
    assert found.unasked_text == made.unasked_text
    assert found.scores["words"][:NUM_QUOTING] == [0.9] * NUM_QUOTING
    assert all(map(math.isnan, found.scores["words"][NUM_QUOTING:]))


# --- two runs --------------------------------------------------------------------------------------


def run_of(name: str, **how: int) -> Run:
    sections: Mapping[str, dict[str, object]] = {
        "evaluation": {"seed": 0},
        "model": {"resolution": 16},
        "preparation": {"scorers": {"judge": {"kind": "clip"}, "words": {"kind": "ocr"}}},
    }
    found = {
        one.sampler: Measured(
            ScoreTable(
                tuple(one.captions),
                {scorer: tuple(values) for scorer, values in one.scores.items()},
                {"high_frequency": tuple(one.high_frequency), "saturation": tuple(one.saturation)},
                tuple(one.unasked_text or ()),
            ),
            Distances({}, {}),
            one.basis,
            None,
        )
        for one in read_measurements(**how)
    }
    return Run(name, "d" * 64, "e" * 64, sections, {}, found, lambda _: [Image.new("RGB", (16, 16), "red")] * 8)


def test_two_runs_are_compared_where_both_have_a_score_and_by_their_unasked_text() -> None:
    found = compare_runs(run_of("a"), run_of("b", by_student=8), settings=[])
    (students,) = (one for one in found.samplers if one.sampler == Sampler("rg", 2))
    assert students.values["words"].difference.value == 0
    assert students.values["unasked_text"].difference.value == pytest.approx(-24 / 64)
    assert students.values["unasked_text"].wins is None
    assert found.notes[-1] == f"words has scores for {NUM_QUOTING} of the {NUM_IMAGES} pairs alone"
    assert "unasked text" in as_text(found)
    assert "no score" not in as_text(found)
    assert "unasked text" in page_html(found)
