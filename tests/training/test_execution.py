"""What changes the speed of networks on a GPU, and only there."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from rglcd.stages.run import Output
from rglcd.stages.table import stage_named
from rglcd.training.distributed import World
from rglcd.training.execution import Execution
from tests.tiny_line import tiny_config


class Layer(nn.Module):
    """Not torch's own class: dynamo looks into none of these by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.linear(rows)


def test_a_compiled_network_has_a_graph_of_its_own_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's rows after the teacher's, which are twice as many, made the graph that student and target share one for any size."""
    sizes: list[int | torch.SymInt] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        sizes.extend(tensor.shape[0] for tensor in inputs if isinstance(tensor, torch.Tensor) and not isinstance(tensor, nn.Parameter))
        return graph.forward

    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compiled(module, backend=compiler, **options))
    teacher, target = Layer(), Layer()
    Execution("compiled", "contiguous").apply([teacher, target])
    for network, rows in ((teacher, 8), (target, 4), (target, 4)):
        network(torch.ones(rows, 4))
    assert sizes == [8, 4]
    assert all(type(size) is int for size in sizes)


class ReachedError(Exception):
    """The stage got as far as its networks."""


@pytest.mark.parametrize(("name", "called"), [("pretrain", "Pretrained"), ("distill", "Pretrained"), ("cache", "remove_stale_staging")])
def test_stages_that_compute_on_a_gpu_do_so_in_tf32(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, called: str
) -> None:
    module = importlib.import_module(f"rglcd.stages.{name}")

    @contextmanager
    def on_a_gpu() -> Iterator[World]:
        yield World(0, 1, torch.device("cuda"))

    def record(*_: object, **__: object) -> None:
        raise ReachedError(torch.get_float32_matmul_precision())

    monkeypatch.setattr(module, "join_world", on_a_gpu)
    monkeypatch.setattr(*((module, called, record) if called.islower() else (getattr(module, called), "open", record)))
    stage, config = stage_named(name), tiny_config()
    sections = [config.section(section) for section in stage.sections]
    inputs = {artifact: line / artifact for artifact in stage.inputs}
    with pytest.raises(ReachedError, match="high"):
        getattr(module, name)(*sections, **inputs, **{stage.outputs[0]: Output(tmp_path, None)})
