import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rglcd.latents.order import sample_indices

seeds = st.integers(0, 2**32)
sizes = st.integers(1, 300)


@given(seed=seeds, num_samples=sizes, epoch=st.integers(0, 1000))
def test_an_epoch_sees_every_sample_once(seed: int, num_samples: int, epoch: int) -> None:
    indices = sample_indices(seed, num_samples, start=epoch * num_samples, count=num_samples)
    assert sorted(indices.tolist()) == list(range(num_samples))


@given(seed=seeds, num_samples=sizes, start=st.integers(0, 1000), counts=st.lists(st.integers(0, 80), max_size=8))
def test_the_order_is_the_same_whatever_pieces_it_is_read_in(seed: int, num_samples: int, start: int, counts: list[int]) -> None:
    """A run that is stopped and resumed, at any place, sees what an unbroken one sees."""
    whole = sample_indices(seed, num_samples, start=start, count=sum(counts))
    place, pieces = start, []
    for count in counts:
        pieces.append(sample_indices(seed, num_samples, start=place, count=count))
        place += count
    assert torch.equal(whole, torch.cat([whole[:0], *pieces]))


@given(seed=seeds, num_samples=sizes, share=st.integers(1, 8), world_size=st.sampled_from([1, 2, 4, 8]), step=st.integers(0, 50))
def test_the_order_is_the_same_for_any_number_of_ranks(seed: int, num_samples: int, share: int, world_size: int, step: int) -> None:
    batch_size = 8 * share
    batch = sample_indices(seed, num_samples, start=step * batch_size, count=batch_size)
    local = batch_size // world_size
    ranks = [sample_indices(seed, num_samples, start=step * batch_size + rank * local, count=local) for rank in range(world_size)]
    assert torch.equal(torch.cat(ranks), batch)


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [sample_indices(seed, 1000, start=epoch * 1000, count=1000) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_every_sample_can_come_first() -> None:
    """Chi-square of the first index over 4000 seeds against the uniform: 31 degrees of freedom, 0.1 % critical value 61.1."""
    firsts = torch.cat([sample_indices(seed, 32, start=0, count=1) for seed in range(4000)])
    counts = torch.bincount(firsts, minlength=32).double()
    assert float(((counts - 125) ** 2 / 125).sum()) < 61.1


def test_an_order_of_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        sample_indices(0, 0, start=0, count=1)
