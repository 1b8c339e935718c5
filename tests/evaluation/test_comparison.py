from dataclasses import astuple, replace

import pytest

from rglcd.evaluation.comparison import compare
from tests.evaluation.fixtures import NUM_IMAGES, comparison, constant, measurements


def test_win_rates_against_the_plain_arm_are_at_equal_steps():
    found = comparison(constant(0.7, "judge"), plain=0.7)
    assert found.focus.scores["judge"].win_rates["lcm"].value == 0.5
    assert "lcm" not in found.steps_of("lcm")[0].scores["judge"].win_rates


def test_copies_of_the_pictures_of_each_prompt_narrow_no_interval_of_a_report() -> None:
    """Four pictures a prompt that are one picture are as good as one: in means, in win rates, and by group."""
    values = [number / NUM_IMAGES for number in range(NUM_IMAGES)]
    once = measurements({"judge": values}, plain=0.4)
    copied = [replace(m, captions=m.captions * 4, scores={name: found * 4 for name, found in m.scores.items()}) for m in once]
    labels = [{"style": "photo" if number % 2 else "anime"} for number in range(NUM_IMAGES)]
    one, four = (compare(made, seed=0, trained_on=None, labels=each) for made, each in ((once, labels), (copied, labels * 4)))
    mean, wins = one.focus.scores["judge"].mean, one.focus.scores["judge"].win_rates["teacher"]
    assert astuple(four.focus.scores["judge"].mean) == pytest.approx(astuple(mean))
    assert four.focus.scores["judge"].win_rates["teacher"].low == pytest.approx(wins.low, abs=0.03), "Wilson's beside the bootstrap's"
    groups = [found.groupings[0].scores[found.focus.sampler]["judge"]["photo"].mean for found in (one, four)]
    assert astuple(groups[0]) == pytest.approx(astuple(groups[1]))
