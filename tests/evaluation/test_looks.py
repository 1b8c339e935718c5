"""When looks at a training say that the reward is hacked."""

import random
from dataclasses import replace

import pytest

from rglcd.evaluation.looks import Figures, Look, read_looks, suspicion, write_looks

HELD_OUT = ("judge",)


def look(step: int, *, expert: float, judge: float, distance: float = 0.2, diversity: float | None = 1.0, spread: float = 0.01) -> Look:
    """Four prompts, each as far from the mean as ever."""
    around = [-spread, spread, -2 * spread, 2 * spread]
    figures = Figures(
        scores={"expert": [expert + d for d in around], "judge": [judge + d for d in around]},
        teacher_distance=[distance + d for d in around],
        high_frequency=[0.1] * 4,
        saturation=[0.1] * 4,
        diversity=None if diversity is None else [diversity + d for d in around],
    )
    return Look(step, step * 8, figures, 0.5)


GOOD = [look(10, expert=0.1, judge=0.1, distance=0.3), look(20, expert=0.2, judge=0.3)]
HACKED = [look(10 * k, expert=0.1 * k, judge=0.3 - 0.01 * k, distance=0.2 + 0.02 * k) for k in range(3, 6)]


def suspected(looks: list[Look], **given: object) -> str | None:
    return suspicion(looks, **{"trained_on": "expert", "held_out": HELD_OUT, **given})


def test_hacking_is_suspected_when_the_reward_rises_and_two_held_out_measures_fall_at_three_looks_in_a_row() -> None:
    found = suspected([*GOOD, *HACKED])
    assert found is not None
    assert found.startswith("reward hacking suspected: expert has risen since step 20")
    assert "judge is worse than after step 20 (0.3 to 0.25)" in found
    assert "nearness to the teacher is worse than after step 20 (-0.2 to -0.3)" in found
    for number in range(len(GOOD) + 2):
        assert suspected([*GOOD, *HACKED][: number + 1]) is None, "two looks are not three"


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([replace(bad, figures=replace(bad.figures, teacher_distance=[0.2] * 4)) for bad in HACKED], id="one measure alone"),
        pytest.param([HACKED[0], look(40, expert=0.4, judge=0.5, distance=0.1), HACKED[2]], id="a good look between"),
        pytest.param([look(k, expert=0.2, judge=0.1, distance=0.5) for k in (30, 40, 50)], id="the reward has not risen"),
        pytest.param([look(k, expert=0.1, judge=0.1, distance=0.5) for k in (30, 40, 50)], id="the reward has fallen"),
    ],
)
def test_it_is_not_suspected_of_less(looks: list[Look]) -> None:
    assert suspected([*GOOD, *looks]) is None


def test_a_student_without_a_reward_hacks_none_and_a_scorer_akin_to_it_is_no_witness() -> None:
    assert suspected([*GOOD, *HACKED], trained_on=None) is None
    assert suspected([*GOOD, *HACKED], held_out=()) is None


def test_diversity_is_a_witness() -> None:
    collapsing = [replace(bad, figures=replace(bad.figures, diversity=[0.9 - 0.1 * k] * 4)) for k, bad in enumerate(HACKED)]
    assert suspected([*GOOD, *collapsing], held_out=()) is not None
    single = [replace(seen, figures=replace(seen.figures, diversity=None)) for seen in (*GOOD, *HACKED)]
    assert suspected(single) is not None, "one picture a prompt: two witnesses are left"


def test_chance_alone_is_seldom_suspected() -> None:
    """Figures without any trend, 20 looks a run, 60 runs: at any of its looks a run may be suspected."""
    generator, suspects = random.Random(1), 0
    for _ in range(60):
        looks = []
        for step in range(20):
            figures = Figures(
                scores={name: [generator.gauss(0, 1) for _ in range(8)] for name in ("expert", "judge")},
                teacher_distance=[generator.gauss(0, 1) for _ in range(8)],
                high_frequency=[0.0] * 8,
                saturation=[0.0] * 8,
                diversity=[generator.gauss(0, 1) for _ in range(8)],
            )
            looks.append(Look(step, step, figures, 0.0))
        suspects += any(suspected(looks[:end]) for end in range(4, 21))
    assert suspects <= 1


def test_looks_come_back_as_they_were_written(tmp_path) -> None:
    write_looks(tmp_path, [*GOOD, *HACKED])
    assert read_looks(tmp_path) == [*GOOD, *HACKED]
    assert read_looks(tmp_path / "nowhere") == []
