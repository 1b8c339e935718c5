from tests.evaluation.fixtures import comparison, constant


def test_win_rates_against_the_plain_arm_are_at_equal_steps():
    found = comparison(constant(0.7, "judge"), plain=0.7)
    assert found.focus.scores["judge"].win_rates["lcm"].value == 0.5
    assert "lcm" not in found.steps_of("lcm")[0].scores["judge"].win_rates
