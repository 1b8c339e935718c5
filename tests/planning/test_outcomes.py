"""What is remembered of an operation is what the operation makes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rglcd.planning.counting import LiveBytes
from rglcd.planning.outcomes import outcome, storages

aten: Any = torch.ops.aten
ROWS = torch.empty(6, 8, dtype=torch.int64, device="meta")
IMAGES = torch.empty(2, 4, 8, 8, device="meta", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
KERNEL = torch.empty(16, 4, 3, 3, device="meta", dtype=torch.bfloat16)
HEADS = torch.empty(2, 4, 128, 8, device="meta", dtype=torch.bfloat16)

CALLS = {
    "whole number": (aten.add.Tensor, (ROWS, 1)),
    "broken number": (aten.add.Tensor, (ROWS, 1.0)),
    "yes": (aten.add.Tensor, (ROWS, True)),
    "strides": (aten.convolution.default, (IMAGES, KERNEL, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)),
    "several results": (aten.native_group_norm.default, (IMAGES.contiguous(), None, None, 2, 4, 64, 2, 1e-5)),
    "attention": (aten._scaled_dot_product_flash_attention.default, (HEADS, HEADS, HEADS)),
    "view": (aten.transpose.int, (ROWS, 0, 1)),
    "view that says nothing of it": (aten._unsafe_view.default, (ROWS, [48])),
    "change": (aten.mul_.Tensor, (ROWS, 2)),
    "list": (aten.cat.default, ([ROWS, ROWS],)),
}


def described(result: Any, args: Any) -> list[Any]:
    """Of each tensor its shape, strides and type, and which of the arguments' memory it uses; anything else as it is."""
    given = [storage._cdata for storage in storages(args)]
    return [
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.untyped_storage().nbytes(), leaf.untyped_storage()._cdata in given)
        if isinstance(leaf, Tensor)
        else leaf
        for leaf in tree_leaves(result)
    ]


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_makes_the_same_each_time(name: str) -> None:
    func, args = CALLS[name]
    run = described(func(*args), args)
    outcomes = [outcome(func, args, {}) for _ in range(3)]
    assert [described(each.result, args) for each in outcomes] == [run] * 3
    assert len({each.flops for each in outcomes}) == 1
    assert (outcomes[0].flops > 0) == (name in ("strides", "attention"))


def test_each_result_has_memory_of_its_own() -> None:
    func, args = CALLS["whole number"]
    results = [outcome(func, args, {}).result for _ in range(3)]
    assert len({storage._cdata for storage in storages(results)}) == 3


def test_tensors_with_values_are_computed() -> None:
    two = torch.tensor(2.0)
    assert [outcome(aten.mul.Tensor, (two, number), {}).result.item() for number in (3.0, 3.0, 4.0)] == [6.0, 6.0, 8.0]
    shape = torch.empty(1, device="meta")
    assert outcome(aten.mul.Tensor, (shape, two), {}).result.is_meta


def test_a_step_with_values_and_torchs_own_objects_is_counted() -> None:
    """An optimizer's step hands the profiler an object that nothing may compare."""
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    with LiveBytes() as live:
        layer(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.step()
    gradients, moments = 4 * (4 * 3 + 3), 2 * 4 * (4 * 3 + 3)
    assert live.peak >= gradients + moments
    assert live.flops == 2 * (2 * 4 * 3) * 2
