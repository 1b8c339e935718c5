import pytest

from rglcd.evaluation.report_data import report_data
from rglcd.evaluation.wording import duration
from tests.evaluation.fixtures import comparison, constant, pictures, provenance


def test_headlines_compare_the_student_at_two_steps_with_the_teacher():
    found = comparison(constant(0.7, "judge"))
    headlines = report_data(found, pictures=pictures(["x"]), provenance=provenance(), curves={}).headlines
    assert headlines.student == "RG-LCM, two steps"
    assert headlines.seconds is not None
    assert headlines.seconds.teacher / headlines.seconds.student == pytest.approx(25)
    assert headlines.frechet is not None
    assert (headlines.frechet.student, headlines.frechet.teacher) == (12.0, 60.0)


@pytest.mark.parametrize(("seconds", "text"), [(0.0034, "3.4 ms"), (1.5, "1.5 s"), (60, "60 s"), (600, "10 min"), (7500, "2 h 05 min")])
def test_durations_have_a_suitable_unit(seconds, text):
    assert duration(seconds) == text
