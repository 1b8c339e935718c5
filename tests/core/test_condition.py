"""Conditions are batches of rows: rows do not mix, and replacing a caption keeps the image's sizes."""

import pytest
import torch

from rglcd.core.condition import Condition


def condition(rng: torch.Generator, rows: int, *, pooled: bool) -> Condition:
    embeddings = torch.randn(rows, 3, 4, generator=rng)
    if not pooled:
        return Condition(embeddings)
    return Condition(embeddings, torch.randn(rows, 5, generator=rng), torch.randint(0, 2000, (rows, 6), generator=rng))


def fields(cond: Condition) -> list[torch.Tensor]:
    return [tensor for tensor in vars(cond).values() if tensor is not None]


def equal(first: Condition, second: Condition) -> bool:
    return len(fields(first)) == len(fields(second)) and all(map(torch.equal, fields(first), fields(second)))


@pytest.mark.parametrize("pooled", [False, True])
def test_slicing_joined_conditions_gives_back_the_parts(rng: torch.Generator, pooled: bool) -> None:
    first, second = (condition(rng, rows, pooled=pooled) for rows in (2, 3))
    both = Condition.joined([first, second])
    assert len(both) == 5
    assert equal(both[:2], first)
    assert equal(both[2:], second)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("null_rows", [1, 4])
def test_with_caption_of_replaces_captions_of_chosen_rows_and_keeps_sizes(rng: torch.Generator, pooled: bool, null_rows: int) -> None:
    cond, null = condition(rng, 4, pooled=pooled), condition(rng, 1, pooled=pooled)
    nulls = Condition.joined([null] * null_rows)
    everywhere = cond.with_caption_of(nulls)
    assert torch.equal(everywhere.embeddings, null.embeddings.expand(4, -1, -1))
    some = cond.with_caption_of(nulls, torch.tensor([True, False, False, True]))
    assert equal(some[1:3], cond[1:3])
    assert equal(some[:1], everywhere[:1])
    assert equal(some[3:], everywhere[3:])
    if pooled:
        assert torch.equal(everywhere.pooled, null.pooled.expand(4, -1))
        assert torch.equal(everywhere.time_ids, cond.time_ids)


def test_with_time_ids_expands_one_row_to_all(rng: torch.Generator) -> None:
    cond = condition(rng, 4, pooled=True)
    sized = cond.with_time_ids(torch.arange(6)[None])
    assert torch.equal(sized.time_ids, torch.arange(6).expand(4, -1))
    assert torch.equal(sized.pooled, cond.pooled)
    assert cond.with_time_ids(None).time_ids is None


def test_time_ids_keep_their_dtype_when_captions_are_cast(rng: torch.Generator) -> None:
    cond = condition(rng, 4, pooled=True).with_time_ids(torch.full((1, 6), 1023))
    half = cond.to(dtype=torch.bfloat16)
    assert half.embeddings.dtype == half.pooled.dtype == torch.bfloat16
    assert torch.equal(half.time_ids, cond.time_ids)


def test_joining_sd_and_sdxl_conditions_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(AssertionError, match="one kind"):
        Condition.joined([condition(rng, 1, pooled=True), condition(rng, 1, pooled=False)])


def test_a_mask_goes_with_its_caption_and_keeps_its_dtype(rng: torch.Generator) -> None:
    masks = torch.tensor([[True, True, False], [True, False, False]])
    cond = Condition(torch.randn(2, 3, 4, generator=rng), mask=masks)
    null = Condition(torch.zeros(1, 3, 4), mask=torch.tensor([[True, False, False]]))
    assert torch.equal(cond.with_caption_of(null).mask, null.mask.expand(2, -1))
    assert torch.equal(cond.with_caption_of(null, torch.tensor([False, True])).mask[:1], masks[:1])
    assert cond.to(dtype=torch.bfloat16).mask.dtype == torch.bool
    assert torch.equal(Condition.joined([cond, cond])[2:].mask, masks)
    assert torch.equal(cond.with_time_ids(None).mask, masks)
