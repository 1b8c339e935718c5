import csv
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rglcd.evaluation import report
from rglcd.evaluation.measurement import Subject, contact_sheet
from rglcd.evaluation.report import Outcome, outcome_of
from rglcd.evaluation.statistics import Estimate
from tests.evaluation.fixtures import NUM_IMAGES, comparison, constant

HALF = [0.9] * (NUM_IMAGES // 2) + [0.1] * (NUM_IMAGES // 2)


# --- the verdict is what the intervals say, no more ----------------------------------------------


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_side_is_won_only_by_a_whole_interval(one, other):
    low, high = sorted((one, other))
    outcome = outcome_of(Estimate((low + high) / 2, low, high))
    assert (outcome is Outcome.UNDECIDED) == (low <= 0.5 <= high)
    assert (outcome is Outcome.BETTER) == (low > 0.5)


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        ([0.9] * NUM_IMAGES, "Two steps of RG-LCM are preferred to the teacher’s fifty, by judge."),
        ([0.1] * NUM_IMAGES, "Two steps of RG-LCM do not reach the teacher’s fifty yet, says judge."),
        (HALF, "Two steps of RG-LCM and the teacher’s fifty cannot be told apart by judge."),
        ([0.5] * NUM_IMAGES, "Two steps of RG-LCM and the teacher’s fifty cannot be told apart by judge."),
    ],
)
def test_the_verdict_follows_the_judge_whatever_the_training_reward_says(judge, expected):
    for expert in (0.1, 0.9):
        assert report.verdict(comparison({"expert": [expert] * NUM_IMAGES, "judge": judge})) == expected


def test_a_divided_panel_is_told_as_divided():
    divided = comparison({**constant(0.9, "judge"), **constant(0.1, "checker"), "third": HALF}, trained_on=None)
    assert report.verdict(divided) == (
        "Two steps of RG-LCM against the teacher’s fifty: preferred by judge, not told apart by third, rated lower by checker."
    )


def test_over_optimisation_is_called_by_its_name():
    hacked = comparison({**constant(0.9, "expert"), **constant(0.1, "judge")})
    assert any("over-optimisation" in sentence and "judge prefers" in sentence for sentence in report.findings(hacked))
    honest = comparison({**constant(0.9, "expert"), **constant(0.9, "judge")})
    assert not any("over-optimisation" in sentence for sentence in report.findings(honest))


def test_a_reward_that_judges_itself_is_called_out():
    assert any("the training reward" in sentence for sentence in report.findings(comparison(constant(0.9, "expert"))))


def test_the_plain_arm_is_compared_at_equal_steps():
    found = comparison(constant(0.7, "judge"), plain=0.7)
    assert found.focus.scores["judge"].win_rates["lcm"].value == 0.5
    assert "lcm" not in found.steps_of("lcm")[0].scores["judge"].win_rates


def test_the_speed_up_is_the_ratio_of_the_times():
    assert report.speed_up(comparison(constant(0.7, "judge"))) == pytest.approx(25)


# --- files ---------------------------------------------------------------------------------------


def test_metrics_are_nested_numbers_without_times():
    found = report.metrics(comparison({**constant(0.7, "expert"), **constant(1.0, "judge")}))
    assert list(found) == ["real", "teacher", "lcm", "rg"]
    assert found["rg"]["2"]["judge"] == {
        "mean": 1.0,
        "low": 1.0,
        "high": 1.0,
        "full_marks": 1.0,
        "win_rate_teacher": {"value": 1.0, "low": pytest.approx(0.943, abs=1e-3), "high": 1.0},
        "win_rate_lcm": {"value": 1.0, "low": pytest.approx(0.943, abs=1e-3), "high": 1.0},
    }
    assert found["teacher"]["50"]["fid"] == 60.0
    assert "fid" not in found["real"]
    assert "second" not in str(found)


def test_speeds_are_of_those_who_draw():
    assert report.speeds(comparison(constant(0.7, "judge"))) == {
        "teacher": {"50": 0.05},
        "lcm": {"1": 0.001, "2": 0.002},
        "rg": {"1": 0.001, "2": 0.002},
    }


def test_the_csv_has_a_row_for_each_number_of_steps_and_a_column_for_each_score():
    rows = list(csv.DictReader(io.StringIO(report.quality_csv(comparison(constant(0.7, "judge"))))))
    assert [row["steps"] for row in rows] == ["1", "2"]
    assert set(rows[0]) == {"steps", *(f"{who} {score}" for who in ("teacher", "lcm", "rg") for score in ("judge", "fid"))}
    assert rows[1]["rg judge"] == "0.7"
    assert rows[0]["teacher fid"] == rows[1]["teacher fid"] == "60.0"


def test_the_markdown_table_is_rectangular():
    text = report.markdown(comparison({**constant(0.7, "expert"), **constant(0.7, "judge")}))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "expert (trained on)" in rows[0]
    assert text.startswith("**Two steps of RG-LCM are preferred")


def test_the_grid_has_a_row_for_each_prompt_and_shows_the_pictures_unblurred():
    red = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    red[1, 0] = 255
    sheets = {Subject("teacher", 50): contact_sheet(red), Subject("rg", 1): contact_sheet(red)}
    picture = report.grid_png(sheets, ["black", "red with a very long caption " * 20], side=16)
    colours = {colour for _, colour in Image.Image.getcolors(picture.crop((6, 60, 102, 156)), 10_000)}
    assert colours == {(0, 0, 0)}
    assert picture.getpixel((50, picture.height - 30)) == (255, 0, 0)


@pytest.mark.parametrize(("seconds", "text"), [(0.0034, "3.4 ms"), (1.5, "1.5 s"), (60, "60 s"), (600, "10 min"), (7500, "2 h 05 min")])
def test_durations_are_said_as_people_say_them(seconds, text):
    assert report.duration(seconds) == text
