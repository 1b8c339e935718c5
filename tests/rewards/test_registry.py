"""Reward models by name: every kind keeps the protocol, whatever it is made of."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from rglcd.config import Preparation, ScorerSource
from rglcd.errors import InputError
from rglcd.models.checkpoint_import import read_checkpoint
from rglcd.rewards.clip import ClipReward
from rglcd.rewards.conversion import CONVERTERS
from rglcd.rewards.protocol import DifferentiableReward, Reward
from rglcd.rewards.registry import has_weights, load_scorer, open_scorer, scorer_kinds
from rglcd.toy.judge import JudgeShape, ToyJudge
from rglcd.toy.scene import all_scenes, caption
from tests.rewards.published_models import CPU, FLOAT32, converted, publish_heads
from tests.tiny_models import PROJECTION_WIDTH, write_tiny_clip

PLACE = {"dtype": FLOAT32, "device": CPU}
SETTINGS: dict[str, dict[str, Any]] = {
    "imagereward": {"form": "raw"},
    "aesthetic-v1": {"logit_scale": 2.0},
    "aesthetic-v2": {"logit_scale": 2.0},
    "mixture": {"weights": {"clip": 0.5, "aesthetic-v1": 2.0}, "logit_scale": 2.0},
}
# The two that need something installed have tests of their own.
KINDS = sorted({*scorer_kinds(), "mixture"} - {"hpsv2-process", "entry-point"})


def write(kind: str, folder: Path) -> None:
    if kind == "clip":
        write_tiny_clip(folder)
    elif kind == "toy-judge":
        ToyJudge(sorted(set(" ".join(map(caption, all_scenes())).split())), JudgeShape()).save_pretrained(folder)
    elif kind.startswith("aesthetic"):
        write_tiny_clip(folder)
        linear, deep = publish_heads(folder.with_name("published"), width=PROJECTION_WIDTH)
        CONVERTERS[kind](read_checkpoint(linear if kind == "aesthetic-v1" else deep), folder)
    elif kind in CONVERTERS:
        converted(kind, folder)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind that has weights, named as the kind is."""
    root = tmp_path_factory.mktemp("shelf")
    for kind in KINDS:
        write(kind, root / kind)
    shutil.rmtree(root / "published")
    return root


CATALOGUE = {kind: {"kind": kind} | SETTINGS.get(kind, {}) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_what_the_protocol_promises(kind: str, shelf: Path) -> None:
    assert (shelf / kind).is_dir() == has_weights(kind, CATALOGUE)
    reward = open_scorer(kind, CATALOGUE, shelf, **PLACE)
    assert isinstance(reward, Reward)
    captions = [caption(scene) for scene in all_scenes()[:2]]
    text = reward.encode_text(captions)
    assert text.shape == (2, reward.text_width)
    assert not text.requires_grad
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    scores = reward.score(pixels, text.float())
    low, high = reward.range
    assert scores.shape == (2,)
    assert ((scores >= low) & (scores <= high)).all()
    assert scores.requires_grad == reward.differentiable
    assert reward.logit_scale > 0
    digest = reward.weights_sha256()
    assert digest is None if kind == "toy-checker" else re.fullmatch("[0-9a-f]{64}", digest or "")


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"toy-checker"}))
def test_a_score_waits_for_no_device(kind: str, shelf: Path) -> None:
    """On ``meta`` tensors, which have no values, any read of one would raise, and so would a constant left on the CPU."""
    meta = torch.device("meta")
    reward = open_scorer(kind, CATALOGUE, shelf, dtype=FLOAT32, device=meta)
    pixels = torch.empty(2, 3, 40, 40, device=meta, requires_grad=True)
    reward.score(pixels, torch.empty(2, reward.text_width, device=meta)).sum().backward()
    assert pixels.grad is not None


def test_the_configuration_knows_the_same_kinds() -> None:
    classes = get_args(get_args(ScorerSource)[0])
    configured = {kind for scorer in classes for kind in get_args(scorer.model_fields["kind"].annotation)}
    assert configured == {*scorer_kinds(), "mixture"}


def test_the_documented_configuration_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    written = yaml.safe_load(block)["preparation"]
    section = Preparation.model_validate(written | {"features": {"kind": "auto"}})
    documented = {scorer.settings()["kind"] for scorer in section.scorers.values()}
    assert documented == {*scorer_kinds(), "mixture"} - {"aesthetic-v1", "clip", "toy-judge", "toy-checker"}


def test_another_weight_is_another_digest(shelf: Path, tmp_path: Path) -> None:
    write_tiny_clip(tmp_path / "clip", seed=1)
    first, second = (load_scorer("clip", folder / "clip", **PLACE).weights_sha256() for folder in (shelf, tmp_path))
    assert first != second


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown scorer kind 'hps'; there are: aesthetic-v1, .*, toy-judge$"):
        load_scorer("hps", Path("nowhere"), **PLACE)


def test_only_a_reward_with_a_gradient_may_guide(shelf: Path) -> None:
    clip, checker = (open_scorer(kind, CATALOGUE, shelf, **PLACE) for kind in ("clip", "toy-checker"))
    assert isinstance(clip, ClipReward)
    assert isinstance(clip, DifferentiableReward)
    assert not checker.differentiable


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"mixture", "toy-checker"}))
def test_a_missing_folder_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_scorer(kind, tmp_path / "nowhere", **PLACE, **SETTINGS.get(kind, {}))


def test_a_clip_folder_is_no_imagereward(shelf: Path) -> None:
    with pytest.raises(InputError, match=r"does not describe an ImageReward: name ImageReward\.pt as `file`"):
        load_scorer("imagereward", shelf / "clip", **PLACE, form="raw")


# --- a user's own --------------------------------------------------------------------------------

CODE = """
import math
import torch

class Brightness:
    differentiable = True
    range = (0.0, 1.0)
    logit_scale = 1.0
    text_width = 0

    def __init__(self, folder):
        self.gain = 1.0 if folder is None else float((folder / "gain.txt").read_text())

    def weights_sha256(self):
        return None

    def encode_text(self, captions):
        return torch.zeros(len(captions), 0)

    def score(self, pixels, text):
        return self.gain * pixels.mean(dim=(1, 2, 3))

def brightness(folder, *, dtype, device):
    return Brightness(folder)

def nothing(folder, *, dtype, device):
    return "no reward"
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Reward]:
    """A package with entry points, as an installer lays it out; opens a scorer of kind ``entry-point``."""
    site = tmp_path / "site-packages"
    metadata = site / "bright-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "bright.py").write_text(CODE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bright\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rglcd.rewards]\nbrightness = bright:brightness\nnothing = bright:nothing\n")
    monkeypatch.syspath_prepend(str(site))

    def opened(name: str, *, has_weights: bool = False) -> Reward:
        catalogue = {"mine": {"kind": "entry-point", "name": name, "has_weights": has_weights}}
        return open_scorer("mine", catalogue, tmp_path / "shelf", **PLACE)

    return opened


def test_a_users_own_reward_comes_from_an_installed_package(installed: Callable[..., Reward], tmp_path: Path) -> None:
    pixels = torch.rand(3, 3, 8, 8)
    reward = installed("brightness")
    assert isinstance(reward, DifferentiableReward)
    torch.testing.assert_close(reward.score(pixels, reward.encode_text(["a"] * 3)), pixels.mean(dim=(1, 2, 3)))
    (tmp_path / "shelf" / "mine").mkdir(parents=True)
    (tmp_path / "shelf" / "mine" / "gain.txt").write_text("0.5")
    halved = installed("brightness", has_weights=True)
    torch.testing.assert_close(halved.score(pixels, halved.encode_text(["a"] * 3)), pixels.mean(dim=(1, 2, 3)) / 2)


def test_an_entry_point_that_nobody_offers_is_refused(installed: Callable[..., Reward]) -> None:
    with pytest.raises(InputError, match=r"no installed package offers the reward 'darkness' .*; there are: brightness, nothing"):
        installed("darkness")


def test_an_entry_point_that_gives_no_reward_is_refused(installed: Callable[..., Reward]) -> None:
    with pytest.raises(InputError, match=r"bright:nothing gave a str, which is no Reward"):
        installed("nothing")
