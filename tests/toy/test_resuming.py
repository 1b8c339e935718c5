from pathlib import Path

import pytest
import torch
from torch import nn

from rglcd.toy import resuming
from rglcd.toy.resuming import Loop
from rglcd.toy.training import Curve


def train(state: Path | None, *, total: int, until: int | None = None) -> tuple[torch.Tensor, list[dict[str, float | str]]]:
    """A line fitted to noise with a momentum and an average; `until` stops it as a kill does."""
    torch.manual_seed(0)
    line = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(line.parameters(), lr=1e-2)
    draws = torch.Generator().manual_seed(1)
    averages = tuple(weight.detach().clone() for weight in line.parameters())
    curve = Curve("line")
    for step in Loop(line, optimizer, draws, curve, averages).steps(total, state):
        if step == until:
            break
        loss = (line(torch.randn(4, 3, generator=draws)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(averages, [weight.detach() for weight in line.parameters()], 0.1)
        curve.add("fit", step, total=total, loss=loss)
    points = [{name: value for name, value in point.items() if name != "cpu_seconds"} for point in curve.points]
    return torch.cat([weight.detach().flatten() for weight in (*line.parameters(), *averages)]), points


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "SAVE_EVERY", 100)
    whole, curve = train(None, total=350)
    train(tmp_path / "state.pt", total=350, until=270)
    resumed, resumed_curve = train(tmp_path / "state.pt", total=350)
    assert torch.equal(whole, resumed)
    assert curve == resumed_curve


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "state.pt", total=30)
    before = (tmp_path / "state.pt").read_bytes()
    again, _ = train(tmp_path / "state.pt", total=30)
    assert torch.equal(whole, again)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_resuming_two_phases_counts_each_second_once(tmp_path: Path) -> None:
    line, curve = nn.Linear(1, 1), Curve("line")
    optimizer = torch.optim.SGD(line.parameters(), lr=0.1)
    loop = Loop(line, optimizer, torch.Generator(), curve)
    curve.started -= 1000
    for phase in ("first", "second"):
        list(loop.steps(1, tmp_path / phase))
    again = Loop(line, optimizer, torch.Generator(), Curve("line"))
    for phase in ("first", "second"):
        assert list(again.steps(1, tmp_path / phase)) == []
    assert 1000 <= again.curve.cpu_seconds < 1100
