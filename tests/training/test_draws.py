"""Randomness depends on the seed and the sample's number, and on nothing else."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rglcd.training.draws import draw_batch, draw_posterior, draw_prediction, draw_seeds

SHAPE = (4, 2, 2)
ALL = slice(0, 4)

DRAWS: dict[str, Callable[..., Any]] = {
    "batch": partial(draw_batch, latent_shape=SHAPE),
    "posterior": partial(draw_posterior, latent_shape=SHAPE),
    "prediction": partial(draw_prediction, latent_shape=SHAPE),
    "dropout": draw_seeds,
}


def tensors_of(drawn: object) -> list[torch.Tensor]:
    return [drawn] if isinstance(drawn, torch.Tensor) else list(vars(drawn).values())


def same(a: object, b: object) -> bool:
    return all(torch.equal(left, right) for left, right in zip(tensors_of(a), tensors_of(b), strict=True))


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_equal_seed_and_step_give_equal_draws_and_others_do_not(draw: Callable[..., Any]) -> None:
    first = draw(1, 5, batch_size=4, rows=ALL)
    torch.manual_seed(99)
    assert same(first, draw(1, 5, batch_size=4, rows=ALL))
    assert not same(first, draw(1, 6, batch_size=4, rows=ALL))
    assert not same(first, draw(2, 5, batch_size=4, rows=ALL))


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_what_ranks_draw_for_their_rows_is_what_one_draws_for_all(draw: Callable[..., Any], num_ranks: int) -> None:
    share = 4 // num_ranks
    parts = [tensors_of(draw(0, 3, batch_size=4, rows=slice(start, start + share))) for start in range(0, 4, share)]
    whole = tensors_of(draw(0, 3, batch_size=4, rows=ALL))
    assert all(torch.equal(torch.cat(columns), column) for columns, column in zip(zip(*parts, strict=True), whole, strict=True))


class NumbersDrawn(TorchDispatchMode):
    """How many random numbers are made."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.total += result.numel()
        return result


def test_a_rank_draws_numbers_for_its_own_rows_and_no_others() -> None:
    """All 1,024 rows of 64 ranks took 0.9 s of every rank's launching thread in each step, at 768 pixels."""
    with NumbersDrawn() as numbers:
        draw_batch(0, 7, batch_size=1024, rows=slice(1008, 1024), latent_shape=SHAPE)
    assert numbers.total == 16 * (3 + 2 * 16)


def test_the_draws_are_of_the_distributions_they_say() -> None:
    draws = draw_batch(3, 1, batch_size=4096, rows=slice(0, 4096), latent_shape=SHAPE)
    for normal in (draws.posterior, draws.eps):
        assert abs(normal.mean()) < 0.02
        assert abs(normal.std() - 1) < 0.02
    uniforms = torch.stack([draws.grid, draws.omega, draws.caption])
    for uniform in uniforms:
        assert uniform.min() >= 0
        assert uniform.max() < 1
        assert abs(uniform.mean() - 0.5) < 0.03
        # In ten bins of 410 each, chi squared of nine degrees of freedom: above 27.9 once in a thousand.
        assert ((uniform.histc(10, 0, 1) - 409.6) ** 2 / 409.6).sum() < 27.9
    assert abs(torch.corrcoef(torch.stack([draws.posterior.flatten(), draws.eps.flatten()]))[0, 1]) < 0.02
    neighbours = torch.corrcoef(torch.cat([uniforms[:, 1:], uniforms[:, :-1]]))
    assert (neighbours - torch.eye(6)).abs().max() < 0.06


def test_neighbouring_samples_and_steps_have_independent_noise() -> None:
    eps = draw_batch(0, 0, batch_size=512, rows=slice(0, 512), latent_shape=(4, 16, 16)).eps.flatten(1)
    correlation = torch.corrcoef(eps) - torch.eye(512)
    assert correlation.abs().max() < 6 / 1024**0.5
    assert abs(float(correlation.square().sum()) / (512 * 511) * 1024 - 1) < 0.05


def test_no_two_samples_of_a_run_share_their_words() -> None:
    words = draw_seeds(5, 0, batch_size=2_000_000, rows=slice(0, 2_000_000))
    assert len(words.unique()) == len(words)
    assert words.min() >= 0
    assert words.max() < 2**32
