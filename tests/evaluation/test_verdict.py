import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rglcd.evaluation.comparison import Comparison, compare
from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.paired_statistics import win_rate_by_caption
from rglcd.evaluation.verdict import Outcome, findings, outcome_of, pictures_to_tell, verdict
from tests.evaluation.fixtures import NUM_IMAGES, comparison, constant, measurements

ENOUGH = 200


def won(share: float, count: int = NUM_IMAGES) -> list[float]:
    """Scores that beat the teacher on a share of the pictures."""
    return [0.9] * round(share * count) + [0.1] * (count - round(share * count))


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
        (won(0.5, ENOUGH), "Two steps of RG-LCM and the teacher’s fifty cannot be told apart by judge."),
        ([0.5] * ENOUGH, "Two steps of RG-LCM and the teacher’s fifty cannot be told apart by judge."),
        (won(0.5), "64 pictures are too few to tell two steps of RG-LCM from the teacher’s fifty; about 200 would do."),
        (won(0.25, 8), "8 pictures are too few to tell two steps of RG-LCM from the teacher’s fifty; about 200 would do."),
        (won(1.0, 8), "8 pictures are too few to tell two steps of RG-LCM from the teacher’s fifty; about 200 would do."),
    ],
)
def test_verdict_ignores_the_training_reward(judge, expected):
    for expert in (0.1, 0.9):
        assert verdict(comparison({"expert": [expert] * len(judge), "judge": judge})) == expected


def of_prompts(num_prompts: int, *, flags: dict[str, float] | None = None, **scores: list[float]) -> Comparison:
    """Two hundred pictures, of so many prompts in turn."""
    made = [replace(one, captions=[f"prompt {number % num_prompts}" for number in range(ENOUGH)]) for one in measurements(scores)]
    painted = {one.sampler: [(flags or {}).get(one.sampler.who, 0.0)] * ENOUGH for one in made}
    return compare([replace(one, unasked_text=painted[one.sampler]) for one in made], seed=0, trained_on="expert")


def test_two_hundred_pictures_of_a_few_prompts_decide_nothing():
    """Resampled prompts that agree make an interval of nearly no width: it would call the luck of two prompts a preference."""
    hacked = {"expert": [0.9] * ENOUGH, "judge": [0.1] * 180 + [0.9, 0.1] * 10}
    for num_prompts in (2, 9):
        few = of_prompts(num_prompts, **hacked, flags={"rg": 1.0})
        said = f"{num_prompts} prompts are too few to tell two steps of RG-LCM from the teacher’s fifty, however many pictures each has."
        assert verdict(few) == said
        assert not [sentence for sentence in findings(few) if "over-optimisation" in sentence or "Words are painted" in sentence]
    enough = of_prompts(10, **hacked, flags={"rg": 1.0})
    assert "not reach" in verdict(enough)
    assert len([sentence for sentence in findings(enough) if "over-optimisation" in sentence or "Words are painted" in sentence]) == 2


def test_a_judge_that_scores_a_few_of_many_pictures_decides_nothing():
    few = comparison({"expert": [0.9] * ENOUGH, "judge": [0.9] * 6 + [math.nan] * (ENOUGH - 6)})
    assert few.focus.scores["judge"].win_rates["teacher"].low > 0.5
    assert verdict(few) == "6 scored pictures are too few to tell two steps of RG-LCM from the teacher’s fifty; about 200 would do."


def test_verdict_lists_judges_that_disagree():
    divided = comparison(
        {**constant(0.9, "judge", count=ENOUGH), **constant(0.1, "checker", count=ENOUGH), "third": won(0.5, ENOUGH)}, trained_on=None
    )
    assert verdict(divided) == (
        "Two steps of RG-LCM against the teacher’s fifty: preferred by judge, not told apart by third, rated lower by checker."
    )
    fewer = comparison({**constant(0.9, "judge"), "third": won(0.5)}, trained_on=None)
    assert verdict(fewer).endswith("preferred by judge, not told apart by third (on 64 pictures; about 200 would do).")


def test_findings_warn_of_over_optimisation():
    hacked = comparison({**constant(0.9, "expert"), **constant(0.1, "judge")})
    assert any("over-optimisation" in sentence and "judge prefers" in sentence for sentence in findings(hacked))
    honest = comparison({**constant(0.9, "expert"), **constant(0.9, "judge")})
    assert not any("over-optimisation" in sentence for sentence in findings(honest))


def test_findings_warn_if_the_only_scorer_is_the_training_reward():
    assert any("the training reward" in sentence for sentence in findings(comparison(constant(0.9, "expert"))))


@pytest.mark.parametrize("rate", [0.25, 0.4, 0.52, 0.6, 0.75])
def test_so_many_pictures_tell_a_win_rate_from_a_tie_four_times_in_five(rate):
    count, generator = pictures_to_tell(rate), torch.Generator().manual_seed(0)
    wins = (torch.rand(1000, count, generator=generator) < rate).double()
    captions = [str(number) for number in range(wins.shape[1])]
    told = sum(
        outcome_of(win_rate_by_caption(row, torch.full_like(row, 0.5), captions, seed=0)) is not Outcome.UNDECIDED for row in wins
    ) / len(wins)
    assert 0.77 < told < 0.92


def test_findings_say_how_many_pictures_a_measured_rate_would_take():
    (said,) = [
        sentence for sentence in findings(comparison({**constant(0.9, "expert"), "judge": won(0.55, 64)})) if "would take" in sentence
    ]
    assert said == f"To tell its 55 % by judge from a tie would take about {pictures_to_tell(35 / 64):,} pictures."
    assert not any("would take" in sentence for sentence in findings(comparison({"judge": won(0.5)}, trained_on=None)))


def test_a_scorer_akin_to_the_training_reward_is_no_judge():
    scores = {**constant(0.9, "expert", "both"), **constant(0.1, "judge")}
    honest = comparison(scores, akin=frozenset({"expert", "both"}))
    assert verdict(honest) == "Two steps of RG-LCM do not reach the teacher’s fifty yet, says judge."
    nobody = comparison(scores, akin=frozenset(scores))
    assert any("No scorer is held out: each of expert, both and judge" in sentence for sentence in findings(nobody))


def test_findings_say_if_a_frechet_distance_has_too_few_images():
    few = comparison(constant(0.9, "judge"), trained_on=None, num_features=64)
    assert any(sentence.startswith("The Fréchet distances mean nothing here: 64 pictures and 64 real images") for sentence in findings(few))
    enough = comparison(constant(0.9, "judge"), trained_on=None, num_features=63)
    assert not any("Fréchet" in sentence for sentence in findings(enough))
