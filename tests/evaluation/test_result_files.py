import csv
import io

import pytest

from rglcd.evaluation.result_files import metrics, quality_csv, speeds
from tests.evaluation.fixtures import BASIS, comparison, constant


def test_metrics_are_nested_by_model_and_steps_and_hold_no_times():
    found = metrics(comparison({**constant(0.7, "expert"), **constant(1.0, "judge")}))
    assert list(found) == ["real", "teacher", "lcm", "rg"]
    assert found["rg"]["2"]["judge"] == {
        "mean": 1.0,
        "low": 1.0,
        "high": 1.0,
        "full_marks": 1.0,
        "win_rate_teacher": {"value": 1.0, "low": pytest.approx(0.943, abs=1e-3), "high": 1.0},
        "win_rate_lcm": {"value": 1.0, "low": pytest.approx(0.943, abs=1e-3), "high": 1.0},
    }
    assert found["teacher"]["50"]["frechet"] == 60.0
    assert found["teacher"]["50"]["kernel_distance"] == {"value": 0.5, "low": 0.4, "high": 0.6}
    assert found["teacher"]["50"]["distances_measured_with"] == BASIS
    assert not {"frechet", "kernel_distance", "distances_measured_with"} & found["real"].keys()
    assert "second" not in str(found)


def test_speeds_leave_out_the_real_images():
    assert speeds(comparison(constant(0.7, "judge"))) == {
        "teacher": {"50": 0.05},
        "lcm": {"1": 0.001, "2": 0.002},
        "rg": {"1": 0.001, "2": 0.002},
    }


def test_csv_has_a_row_per_number_of_steps_and_a_column_per_score():
    rows = list(csv.DictReader(io.StringIO(quality_csv(comparison(constant(0.7, "judge"))))))
    assert [row["steps"] for row in rows] == ["1", "2"]
    assert set(rows[0]) == {"steps", *(f"{who} {score}" for who in ("teacher", "lcm", "rg") for score in ("judge", "frechet"))}
    assert rows[1]["rg judge"] == "0.7"
    assert rows[0]["teacher frechet"] == rows[1]["teacher frechet"] == "60.0"
