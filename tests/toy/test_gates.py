import pytest
import torch

from rglcd.toy.gates import BOUNDS, balanced_accuracy, best_of, correlation_within, gate, wins

DRAWS = torch.Generator().manual_seed(0)
EXPERT = torch.randn(400, 4, generator=DRAWS)
OTHER = torch.randn(400, 4, generator=DRAWS)


def test_correlation_within_is_about_one_captions_pictures_and_not_about_captions() -> None:
    hard = 5 * torch.randn(400, 1, generator=DRAWS)
    assert correlation_within(EXPERT + hard, EXPERT - hard) == pytest.approx(1.0, abs=1e-6)
    assert correlation_within(EXPERT + hard, OTHER + hard) == pytest.approx(0.0, abs=0.1)


def test_best_of_four_wins_where_the_judge_shares_the_experts_preference() -> None:
    assert best_of(EXPERT, EXPERT).value == 1.0
    shared, none = best_of(EXPERT, EXPERT + OTHER), best_of(EXPERT, OTHER)
    assert shared.low > 0.55
    assert none.low < 0.5 < none.high
    assert best_of(EXPERT, torch.zeros(400, 4)).value == 0.5


def test_wins_are_resampled_by_caption() -> None:
    """Four equal pictures of a caption say no more than one: the interval is as wide."""
    ours, theirs = torch.rand(100, generator=DRAWS), torch.rand(100, generator=DRAWS)
    captions = [str(number) for number in range(100)]
    once = wins(ours, theirs, captions)
    four = wins(ours.repeat(4), theirs.repeat(4), captions * 4)
    assert four.value == pytest.approx(once.value)
    assert four.high - four.low == pytest.approx(once.high - once.low)


def test_a_gate_is_met_within_its_bounds_alone() -> None:
    name = "expert and judge: correlation within a caption"
    assert [gate(name, figure).met for figure in (0.49, 0.5, 0.9, 0.91)] == [False, True, True, False]
    assert all(low < high for low, high in BOUNDS.values())
    with pytest.raises(KeyError):
        gate("no such gate", 1.0)


def test_balanced_accuracy_counts_both_sides_alike() -> None:
    assert balanced_accuracy(torch.zeros(90), torch.ones(10), 0.5) == 1.0
    assert balanced_accuracy(torch.zeros(90), torch.zeros(10), 0.5) == 0.5
