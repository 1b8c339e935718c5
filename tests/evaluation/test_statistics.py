import pytest
import torch

from rglcd.evaluation.statistics import diversity, high_frequency_energy, saturation


def test_high_frequency_energy_is_zero_if_flat_and_greatest_for_a_checkerboard():
    flat = torch.full((1, 3, 8, 8), 0.3)
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().expand(1, 3, 8, 8)
    ramp = torch.linspace(0, 1, 8).expand(1, 3, 8, 8)
    flat_energy, ramp_energy, board_energy = high_frequency_energy(torch.cat([flat, ramp, board])).tolist()
    assert flat_energy == pytest.approx(0, abs=1e-6)
    # A binomial blur turns a checkerboard into its mean, wherever the border is reflected.
    assert board_energy == pytest.approx(0.5)
    assert 0 < ramp_energy < 0.1


def test_saturation_is_zero_for_grey_and_one_for_pure_red():
    grey, red = torch.full((1, 3, 4, 4), 0.7), torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    assert saturation(torch.cat([grey, red])).tolist() == pytest.approx([0, 1])


def test_diversity_is_the_mean_distance_between_images_of_one_caption() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0], [100.0, 0.0], [-7.0, 0.0]])
    assert diversity(features, ["a", "a", "b", "b", "c"]) == pytest.approx(2.5)


def test_diversity_is_none_without_two_images_of_one_caption() -> None:
    assert diversity(torch.eye(3), ["a", "b", "c"]) is None
