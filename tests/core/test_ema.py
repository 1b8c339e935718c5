"""The moving average has its closed form, in place and without a gradient."""

import copy

import pytest
import torch
from torch import nn

from rglcd.core.ema import copy_buffers, ema_update


def test_ema_equals_its_closed_form(rng: torch.Generator) -> None:
    # Towards a source that stands still: target_n = source + decay^n (target_0 - source).
    start, source = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64)
    target, decay = start.clone(), 0.95
    for _ in range(20):
        ema_update([target], [source], decay)
    torch.testing.assert_close(target, source + decay**20 * (start - source), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("decay", "expected"), [(1.0, 2.0), (0.0, 10.0), (0.75, 4.0)])
def test_ema_decay_is_the_weight_of_the_old_average(decay: float, expected: float) -> None:
    target = torch.full((3,), 2.0)
    ema_update([target], [torch.full((3,), 10.0)], decay)
    assert target.tolist() == [expected] * 3


def test_ema_update_changes_the_target_in_place_and_leaves_the_source() -> None:
    source = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    target, before = copy.deepcopy(source), copy.deepcopy(source.state_dict())
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    addresses = [parameter.data_ptr() for parameter in target.parameters()]
    ema_update(target.parameters(), source.parameters(), 0.5)
    assert [parameter.data_ptr() for parameter in target.parameters()] == addresses
    for mine, theirs, old in zip(target.parameters(), source.parameters(), before.values(), strict=True):
        assert mine.requires_grad
        assert mine.grad_fn is None
        torch.testing.assert_close(mine, theirs / 2)
        torch.testing.assert_close(theirs.detach(), old, rtol=0, atol=0)


def test_ema_update_refuses_networks_of_different_sizes() -> None:
    with pytest.raises(RuntimeError):
        ema_update([torch.zeros(3), torch.zeros(3)], [torch.ones(3)], 0.5)


def test_copy_buffers_copies_all_buffers() -> None:
    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    source(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    copy_buffers(target, source)
    for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert target.num_batches_tracked == 1
