"""The studies' controls: labels from the scores of others, a proxy that starts at random, a proxy of which only a part learns."""

from pathlib import Path

import pytest
import torch

from rglcd.config import FrozenProxy
from rglcd.core.preference import pairwise_agreement
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.training.controls import label_scores, shuffle
from rglcd.training.distributed import World
from tests.training.test_reward_guidance import guidance_of

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_shuffling_keeps_every_score_once_and_leaves_few_in_place(rng: torch.Generator) -> None:
    scores = torch.randn(3, 500, generator=rng)
    assert shuffle(scores, "own", generator=generator()) is scores
    for pairing in ("other_captions", "other_images"):
        mixed = shuffle(scores, pairing, generator=generator())
        assert torch.equal(mixed.flatten().sort().values, scores.flatten().sort().values)
        assert (mixed == scores).float().mean() < 0.1
        assert torch.equal(mixed, shuffle(scores, pairing, generator=generator()))


def test_permuted_captions_keep_each_captions_scores_together(rng: torch.Generator) -> None:
    scores = torch.randn(3, 50, generator=rng) + torch.tensor([0.0, 10.0, 20.0])[:, None]
    columns = {tuple(column) for column in scores.T.tolist()}
    by_caption, by_image = (shuffle(scores, pairing, generator=generator()) for pairing in ("other_captions", "other_images"))
    assert {tuple(column) for column in by_caption.T.tolist()} == columns
    assert not {tuple(column) for column in by_image.T.tolist()} & columns
    # Real images still win on the whole; fully shuffled nobody does.
    assert pairwise_agreement(scores, by_caption).item() == 1
    assert pairwise_agreement(scores, by_image).item() == pytest.approx(0.5, abs=0.15)


def test_a_random_start_keeps_the_pretrained_shape_and_none_of_its_weights(line: Path) -> None:
    pretrained, random, again = (guidance_of(line, FrozenProxy(), initial=initial).model for initial in ("pretrained", "random", "random"))
    on_disk = LatentRewardModel.load(line / "reward_model", device=torch.device("cpu"))
    assert all(torch.equal(tensor, pretrained.state_dict()[name]) for name, tensor in on_disk.state_dict().items())
    assert random.shape == pretrained.shape
    assert not torch.equal(random.tower.patches.weight, pretrained.tower.patches.weight)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in random.state_dict().items())


def test_the_method_itself_has_no_label_control() -> None:
    assert label_scores("own", seed=0, world=ALONE) is None


@pytest.mark.parametrize("pairing", ["other_captions", "other_images"])
def test_a_shuffle_is_a_function_of_seed_and_step(pairing: str, rng: torch.Generator) -> None:
    scores = torch.randn(3, 50, generator=rng)
    first, other_seed = (label_scores(pairing, seed=seed, world=ALONE) for seed in (0, 1))
    assert torch.equal(first(scores, 4), first(scores, 4))
    assert not torch.equal(first(scores, 4), first(scores, 5))
    assert not torch.equal(first(scores, 4), other_seed(scores, 4))
