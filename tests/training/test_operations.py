"""The count of operations that arms are matched by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from rglcd.training.operations import count_flops

BATCH, HEADS, LENGTH, WIDTH = 1, 2, 64, 16
PRODUCT = 2 * BATCH * HEADS * LENGTH * LENGTH * WIDTH
"""Operations of one of attention's matrix products."""


def attend(backend: SDPBackend, *, backward: bool) -> int:
    query = torch.randn(BATCH, HEADS, LENGTH, WIDTH, requires_grad=backward)

    def work() -> Tensor:
        attended = scaled_dot_product_attention(query, query, query)
        if backward:
            attended.sum().backward()
        return attended

    with sdpa_kernel(backend):
        return count_flops(work)


def test_a_fused_attention_counts_as_its_matrix_products() -> None:
    assert attend(SDPBackend.FLASH_ATTENTION, backward=False) == attend(SDPBackend.MATH, backward=False) == 2 * PRODUCT


def test_attention_whose_arguments_are_named_counts_the_same_with_values_and_without() -> None:
    query = torch.randn(BATCH, HEADS, LENGTH, WIDTH)
    for each in (query, query.to("meta")):
        assert count_flops(lambda each=each: scaled_dot_product_attention(query=each, key=each, value=each)) == 2 * PRODUCT


def test_the_backward_pass_of_fused_attention_counts_its_recomputed_scores() -> None:
    assert attend(SDPBackend.MATH, backward=True) == (2 + 4) * PRODUCT
    assert attend(SDPBackend.FLASH_ATTENTION, backward=True) == (2 + 5) * PRODUCT


class Squared(torch.nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows @ rows


def test_counting_runs_a_compiled_network_eagerly_and_leaves_it_compiled() -> None:
    """Dynamo takes code that it first meets under a dispatch mode for code that it must never compile, whatever network it runs for."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    network, rows = Squared(), torch.randn(LENGTH, LENGTH)
    eagerly = count_flops(lambda: network(rows))
    network.compile(backend=backend)
    assert count_flops(lambda: network(rows)) == eagerly > 0
    assert not graphs
    network(rows)
    assert len(graphs) == 1
