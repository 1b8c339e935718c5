"""Dropout masks depend on sample, layer and element alone, and are statistically as good as random ones."""

import torch

from rglcd.core.dropout import keep_mask

LIKE = torch.empty(8, 16, 32, 32)
SEEDS = torch.randint(0, 2**32, (8,), generator=torch.Generator().manual_seed(1))


def test_dropped_fraction_of_each_sample_is_the_rate() -> None:
    for rate in (0.0, 0.1, 0.5):
        dropped = 1 - keep_mask(SEEDS, LIKE, layer=3, rate=rate).double().mean(dim=(1, 2, 3))
        # Five standard errors of 16,384 draws.
        assert (dropped - rate).abs().max() <= 5 * (rate * (1 - rate) / LIKE[0].numel()) ** 0.5


def test_dropout_masks_are_independent_across_samples_layers_and_elements() -> None:
    mask = keep_mask(SEEDS, LIKE, layer=3, rate=0.5).flatten(1).double()
    adjacent = keep_mask(SEEDS + 1, LIKE, layer=3, rate=0.5).flatten(1).double()
    other_layer = keep_mask(SEEDS, LIKE, layer=4, rate=0.5).flatten(1).double()
    rows = torch.cat([mask, adjacent, other_layer, mask.roll(1, dims=1), mask.roll(32, dims=1)])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 5 / LIKE[0].numel() ** 0.5


def test_dropout_mask_of_a_sample_does_not_depend_on_the_batch() -> None:
    whole = keep_mask(SEEDS, LIKE, layer=0, rate=0.3)
    parts = [keep_mask(SEEDS[rows], LIKE[rows], layer=0, rate=0.3) for rows in (slice(0, 3), slice(3, 8))]
    assert torch.equal(whole, torch.cat(parts))


def test_dropout_mask_needs_no_host_synchronisation() -> None:
    mask = keep_mask(SEEDS.to("meta"), LIKE.to("meta"), layer=0, rate=0.3)
    assert mask.device == torch.device("meta")
