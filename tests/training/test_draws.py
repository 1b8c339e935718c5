"""Randomness depends on seed and step, and on nothing else."""

import torch

from rglcd.training.distributed import World
from rglcd.training.draws import draw_batch

SHAPE = (4, 2, 2)


def same(a: object, b: object) -> bool:
    return all(torch.equal(left, right) for left, right in zip(vars(a).values(), vars(b).values(), strict=True))


def test_equal_seed_and_step_give_equal_draws_and_others_do_not() -> None:
    first = draw_batch(1, 5, batch_size=4, latent_shape=SHAPE)
    torch.manual_seed(99)
    assert same(first, draw_batch(1, 5, batch_size=4, latent_shape=SHAPE))
    assert not same(first, draw_batch(1, 6, batch_size=4, latent_shape=SHAPE))
    assert not same(first, draw_batch(2, 5, batch_size=4, latent_shape=SHAPE))


def test_ranks_share_the_draws_of_the_whole_batch() -> None:
    whole = draw_batch(0, 0, batch_size=4, latent_shape=SHAPE)
    halves = [whole.rows(slice(start, start + 2), World(0, 1, torch.device("cpu"))) for start in (0, 2)]
    assert torch.equal(torch.cat([half.eps for half in halves]), whole.eps)
    assert torch.equal(torch.cat([half.omega for half in halves]), whole.omega)


def test_the_draws_are_of_the_distributions_they_say() -> None:
    draws = draw_batch(3, 1, batch_size=4096, latent_shape=SHAPE)
    for normal in (draws.posterior, draws.eps):
        assert abs(normal.mean()) < 0.02
        assert abs(normal.std() - 1) < 0.02
    for uniform in (draws.grid, draws.omega, draws.caption):
        assert uniform.min() >= 0
        assert uniform.max() < 1
        assert abs(uniform.mean() - 0.5) < 0.03
    assert abs(torch.corrcoef(torch.stack([draws.posterior.flatten(), draws.eps.flatten()]))[0, 1]) < 0.02
