import pytest
from hypothesis import given
from hypothesis import strategies as st

from rglcd.evaluation.statistics import Estimate
from rglcd.evaluation.verdict import Outcome, findings, outcome_of, verdict
from tests.evaluation.fixtures import NUM_IMAGES, comparison, constant

HALF = [0.9] * (NUM_IMAGES // 2) + [0.1] * (NUM_IMAGES // 2)


@given(st.floats(0, 1), st.floats(0, 1))
def test_win_rate_decides_only_if_its_interval_excludes_a_tie(one, other):
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
def test_verdict_ignores_the_training_reward(judge, expected):
    for expert in (0.1, 0.9):
        assert verdict(comparison({"expert": [expert] * NUM_IMAGES, "judge": judge})) == expected


def test_verdict_lists_judges_that_disagree():
    divided = comparison({**constant(0.9, "judge"), **constant(0.1, "checker"), "third": HALF}, trained_on=None)
    assert verdict(divided) == (
        "Two steps of RG-LCM against the teacher’s fifty: preferred by judge, not told apart by third, rated lower by checker."
    )


def test_findings_warn_of_over_optimisation():
    hacked = comparison({**constant(0.9, "expert"), **constant(0.1, "judge")})
    assert any("over-optimisation" in sentence and "judge prefers" in sentence for sentence in findings(hacked))
    honest = comparison({**constant(0.9, "expert"), **constant(0.9, "judge")})
    assert not any("over-optimisation" in sentence for sentence in findings(honest))


def test_findings_warn_if_the_only_scorer_is_the_training_reward():
    assert any("the training reward" in sentence for sentence in findings(comparison(constant(0.9, "expert"))))
