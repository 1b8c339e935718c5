"""The learning rate is a pure function of the step."""

import pytest

from rglcd.training.optimization import LearningRate


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    rate = LearningRate(peak=1.0, warmup_steps=4, num_steps=10, schedule="constant")
    assert [rate.at(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_cosine_falls_from_the_peak_to_nothing() -> None:
    rate = LearningRate(peak=2.0, warmup_steps=0, num_steps=100, schedule="cosine")
    values = [rate.at(step) for step in range(101)]
    assert values[0] == 2.0
    assert values[50] == pytest.approx(1.0)
    assert values[100] == pytest.approx(0.0, abs=1e-12)
    assert values == sorted(values, reverse=True)
