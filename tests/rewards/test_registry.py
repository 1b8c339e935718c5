"""The scorer registry: every kind implements the reward protocol; unknown kinds and folders are refused."""

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
# Those that need something installed have tests of their own.
KINDS = sorted({*scorer_kinds(), "mixture"} - {"hpsv2-process", "process", "entry-point", "ocr"})
PROGRAMS = {"toy-checker", "toy-votes"}


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
def scorers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind that has weights, named as the kind is."""
    root = tmp_path_factory.mktemp("scorers_dir")
    for kind in KINDS:
        write(kind, root / kind)
    shutil.rmtree(root / "published")
    return root


CATALOGUE = {kind: {"kind": kind} | SETTINGS.get(kind, {}) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_scorer_kind_implements_the_reward_protocol(kind: str, scorers_dir: Path) -> None:
    assert (scorers_dir / kind).is_dir() == has_weights(kind, CATALOGUE)
    reward = open_scorer(kind, CATALOGUE, scorers_dir, **PLACE)
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
    assert digest is None if kind in PROGRAMS else re.fullmatch("[0-9a-f]{64}", digest or "")


@pytest.mark.parametrize("kind", sorted(set(KINDS) - PROGRAMS))
def test_scoring_needs_no_host_synchronisation(kind: str, scorers_dir: Path) -> None:
    """On ``meta`` tensors, which have no values, any read of one would raise, and so would a constant left on the CPU."""
    meta = torch.device("meta")
    reward = open_scorer(kind, CATALOGUE, scorers_dir, dtype=FLOAT32, device=meta)
    pixels = torch.empty(2, 3, 40, 40, device=meta, requires_grad=True)
    reward.score(pixels, torch.empty(2, reward.text_width, device=meta)).sum().backward()
    assert pixels.grad is not None


def test_configuration_and_registry_have_the_same_scorer_kinds() -> None:
    classes = get_args(get_args(ScorerSource)[0])
    configured = {kind for scorer in classes for kind in get_args(scorer.model_fields["kind"].annotation)}
    assert configured == {*scorer_kinds(), "mixture"}


def test_scorer_configuration_in_the_docs_is_valid_and_covers_every_kind() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    block, *_ = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    written = yaml.safe_load(block)["preparation"]
    section = Preparation.model_validate(written | {"features": {"kind": "auto"}})
    documented = {scorer.settings()["kind"] for scorer in section.scorers.values()}
    assert documented == {*scorer_kinds(), "mixture"} - {"aesthetic-v1", "clip", "toy-judge"} - PROGRAMS


def test_weights_digest_depends_on_the_weights(scorers_dir: Path, tmp_path: Path) -> None:
    write_tiny_clip(tmp_path / "clip", seed=1)
    first, second = (load_scorer("clip", folder / "clip", **PLACE).weights_sha256() for folder in (scorers_dir, tmp_path))
    assert first != second


def test_unknown_scorer_kind_is_refused_listing_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown scorer kind 'hps'; there are: aesthetic-v1, .*, toy-votes$"):
        load_scorer("hps", Path("nowhere"), **PLACE)


def test_only_scorers_with_a_gradient_are_differentiable_rewards(scorers_dir: Path) -> None:
    clip, checker = (open_scorer(kind, CATALOGUE, scorers_dir, **PLACE) for kind in ("clip", "toy-checker"))
    assert isinstance(clip, ClipReward)
    assert isinstance(clip, DifferentiableReward)
    assert not checker.differentiable


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"mixture"} - PROGRAMS))
def test_missing_weights_folder_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_scorer(kind, tmp_path / "nowhere", **PLACE, **SETTINGS.get(kind, {}))


def test_clip_folder_as_imagereward_is_refused(scorers_dir: Path) -> None:
    with pytest.raises(InputError, match=r"does not describe an ImageReward: name ImageReward\.pt as `file`"):
        load_scorer("imagereward", scorers_dir / "clip", **PLACE, form="raw")


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
        return open_scorer("mine", catalogue, tmp_path / "scorers_dir", **PLACE)

    return opened


def test_entry_point_reward_of_an_installed_package_is_loaded(installed: Callable[..., Reward], tmp_path: Path) -> None:
    pixels = torch.rand(3, 3, 8, 8)
    reward = installed("brightness")
    assert isinstance(reward, DifferentiableReward)
    torch.testing.assert_close(reward.score(pixels, reward.encode_text(["a"] * 3)), pixels.mean(dim=(1, 2, 3)))
    (tmp_path / "scorers_dir" / "mine").mkdir(parents=True)
    (tmp_path / "scorers_dir" / "mine" / "gain.txt").write_text("0.5")
    halved = installed("brightness", has_weights=True)
    torch.testing.assert_close(halved.score(pixels, halved.encode_text(["a"] * 3)), pixels.mean(dim=(1, 2, 3)) / 2)


def test_unknown_entry_point_is_refused_listing_the_known_ones(installed: Callable[..., Reward]) -> None:
    with pytest.raises(InputError, match=r"no installed package offers the reward 'darkness' .*; there are: brightness, nothing"):
        installed("darkness")


def test_entry_point_that_returns_no_reward_is_refused(installed: Callable[..., Reward]) -> None:
    with pytest.raises(InputError, match=r"bright:nothing gave a str, which is no Reward"):
        installed("nothing")
