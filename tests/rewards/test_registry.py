"""Reward models by name."""

from pathlib import Path

import pytest
import torch

from rglcd.errors import InputError
from rglcd.rewards.clip import ClipReward
from rglcd.rewards.protocol import DifferentiableReward, Reward
from rglcd.rewards.registry import load_scorer, needs_weights, scorer_kinds
from rglcd.toy.judge import JudgeShape, ToyJudge
from rglcd.toy.scene import all_scenes, caption
from tests.tiny_models import write_tiny_clip

FLOAT32 = {"dtype": torch.float32, "device": torch.device("cpu")}


def write(kind: str, folder: Path) -> None:
    if kind == "clip":
        write_tiny_clip(folder)
    elif kind == "toy-judge":
        ToyJudge(sorted(set(" ".join(map(caption, all_scenes())).split())), JudgeShape()).save_pretrained(folder)


@pytest.mark.parametrize("kind", scorer_kinds())
def test_every_kind_keeps_what_the_protocol_promises(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path)
    assert any(tmp_path.iterdir()) == needs_weights(kind)
    reward = load_scorer(kind, tmp_path, **FLOAT32)
    assert isinstance(reward, Reward)
    captions = [caption(scene) for scene in all_scenes()[:2]]
    text = reward.encode_text(captions)
    assert len(text) == 2
    assert not text.requires_grad
    scores = reward.score(torch.rand(2, 3, 32, 32), text)
    low, high = reward.range
    assert scores.shape == (2,)
    assert ((scores >= low) & (scores <= high)).all()
    assert reward.logit_scale > 0


@pytest.mark.parametrize("ask", [needs_weights, lambda kind: load_scorer(kind, Path("nowhere"), **FLOAT32)])
def test_an_unknown_kind_is_refused_with_the_known_ones(ask) -> None:
    with pytest.raises(InputError, match=r"unknown scorer kind 'hps'; there are: clip, toy-checker, toy-judge$"):
        ask("hps")


def test_only_a_reward_with_a_gradient_may_guide(tmp_path: Path) -> None:
    write_tiny_clip(tmp_path)
    clip, checker = load_scorer("clip", tmp_path, **FLOAT32), load_scorer("toy-checker", tmp_path, **FLOAT32)
    assert isinstance(clip, ClipReward)
    assert isinstance(clip, DifferentiableReward)
    assert not checker.differentiable


@pytest.mark.parametrize("kind", ["clip", "toy-judge"])
def test_a_missing_folder_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_scorer(kind, tmp_path / "nowhere", **FLOAT32)
