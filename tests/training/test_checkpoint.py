"""A checkpoint is whole or it is not there."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rglcd.training.checkpoint import COMMIT, STATE, Checkpointer, optimizer_tensors, restore_optimizer
from rglcd.training.optimization import adamw, clip, optimise
from tests.publishing import watch_folder_renames

PARTS = {"student": {"weight": torch.arange(6.0).view(2, 3)}, "optimizer": {"weight/step": torch.tensor(3.0)}}


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.latest() is None
    checkpointer.save(7, PARTS, {"curve": [{"loss": 0.5}]})
    latest = checkpointer.latest()
    assert latest is not None
    assert latest.step == 7
    assert latest.state == {"curve": [{"loss": 0.5}]}
    assert torch.equal(latest.parts["student"]["weight"], PARTS["student"]["weight"])


def test_the_newest_stay(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpointer.save(step, PARTS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("victim", ["student.safetensors", STATE, COMMIT])
@settings(max_examples=15, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_a_cut_or_altered_checkpoint_is_passed_over_for_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, victim: str, place: float, cut: bool
) -> None:
    checkpointer = Checkpointer(tmp_path_factory.mktemp("run"))
    checkpointer.save(1, PARTS, {})
    path = checkpointer.save(2, PARTS, {}) / victim
    content = bytearray(path.read_bytes())
    position = int(place * len(content))
    if cut:
        del content[min(position, len(content) - 2) :]
    else:
        content[position] ^= 0xFF
    path.write_bytes(content)
    latest = checkpointer.latest()
    assert latest is not None
    assert latest.step == 1


def test_a_folder_that_a_kill_left_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path)
    (tmp_path / ".step-00000005.staging").mkdir()
    (tmp_path / "step-00000009").mkdir()
    checkpointer.save(4, PARTS, {})
    latest = checkpointer.latest()
    assert latest is not None
    assert latest.step == 4


def test_a_checkpoint_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = watch_folder_renames(monkeypatch)
    Checkpointer(tmp_path).save(1, PARTS, {})
    assert renamed == {"step-00000001": []}


def test_an_optimizer_goes_on_as_if_it_had_never_been_saved() -> None:
    def trained(num_steps: int, network: nn.Linear, optimizer: torch.optim.AdamW) -> None:
        for step in range(num_steps):
            network(torch.full((1, 3), float(step + 1))).pow(2).sum().backward()
            clip(list(network.parameters()), 1.0)
            optimise(optimizer, rate=0.1)

    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimizer = adamw(network.parameters(), weight_decay=0.1)
    trained(3, network, optimizer)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(network.state_dict())
    restored = adamw(twin.parameters(), weight_decay=0.1)
    restore_optimizer(restored, twin, {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, network).items()})
    trained(2, network, optimizer)
    trained(2, twin, restored)
    assert torch.equal(network.weight, twin.weight)
