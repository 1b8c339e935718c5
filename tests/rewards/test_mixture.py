"""A mixture is the weighted sum of its parts: score, gradient, range and type."""

from pathlib import Path

import pytest
import torch

from rglcd.rewards.mixture import DifferentiableMixtureReward, MixtureReward, mixture
from rglcd.rewards.protocol import DifferentiableReward, Reward, without_text
from rglcd.rewards.registry import load_scorer
from rglcd.toy.checker import CheckerReward
from rglcd.toy.scene import all_scenes, caption
from tests.rewards.published_models import CPU, FLOAT64, converted
from tests.tiny_models import write_tiny_clip

SCALE = 3.0
TOY_CAPTIONS = [caption(scene) for scene in all_scenes()[:3]]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reward]:
    root = tmp_path_factory.mktemp("mixture")
    write_tiny_clip(root / "clip")
    converted("imagereward", root / "imagereward")
    return {
        "hps": load_scorer("clip", root / "clip", dtype=FLOAT64, device=CPU),
        "image-reward": load_scorer("imagereward", root / "imagereward", dtype=FLOAT64, device=CPU, form="hinge"),
        "checker": CheckerReward(),
    }


def pixels_of(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)


WEIGHTS = [{"hps": 1.0, "image-reward": 0.1}, {"image-reward": -2.0, "checker": 0.5, "hps": 3.0}]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_mixture_score_is_the_weighted_sum_of_its_parts(parts: dict[str, Reward], weights: dict[str, float]) -> None:
    mixed, pixels = mixture(parts, weights, logit_scale=SCALE), pixels_of(3)
    alone = sum(weight * parts[name].score(pixels, parts[name].encode_text(TOY_CAPTIONS)) for name, weight in weights.items())
    text = mixed.encode_text(TOY_CAPTIONS)
    assert text.shape == (3, mixed.text_width)
    torch.testing.assert_close(mixed.score(pixels, text), alone)
    # Token numbers among the features survive the cache.
    torch.testing.assert_close(mixed.score(pixels, text.float()), alone, rtol=0, atol=1e-6)


def test_mixture_gradient_is_the_weighted_sum_of_gradients(parts: dict[str, Reward]) -> None:
    mixed, pixels = mixture(parts, WEIGHTS[0], logit_scale=SCALE), pixels_of(3).requires_grad_()
    (gradient,) = torch.autograd.grad(mixed.score(pixels, mixed.encode_text(TOY_CAPTIONS)).sum(), pixels)
    alone = sum(
        weight * torch.autograd.grad(parts[name].score(pixels, parts[name].encode_text(TOY_CAPTIONS)).sum(), pixels)[0]
        for name, weight in WEIGHTS[0].items()
    )
    torch.testing.assert_close(gradient, alone)
    assert gradient.abs().max() > 0


def test_mixture_is_differentiable_only_if_all_parts_are(parts: dict[str, Reward]) -> None:
    smooth, rough = (mixture(parts, weights, logit_scale=SCALE) for weights in WEIGHTS)
    assert isinstance(smooth, DifferentiableMixtureReward)
    assert isinstance(smooth, DifferentiableReward)
    assert smooth.differentiable
    assert type(rough) is MixtureReward
    assert not rough.differentiable
    # A part that weighs nothing has no say.
    assert mixture(parts, {"hps": 1.0, "checker": 0.0}, logit_scale=SCALE).differentiable


def test_mixture_combines_ranges_and_digests_and_has_its_own_temperature(parts: dict[str, Reward]) -> None:
    low, high = mixture(parts, WEIGHTS[0], logit_scale=SCALE).range
    assert (low, high) == (-float("inf"), 1.0)
    assert mixture(parts, {"hps": -2.0, "checker": 1.0}, logit_scale=SCALE).range == (-2.0, 3.0)
    mixed = mixture(parts, WEIGHTS[0], logit_scale=SCALE)
    assert mixed.logit_scale == SCALE
    digest = mixed.weights_sha256()
    assert digest is not None
    assert digest not in {parts["hps"].weights_sha256(), parts["image-reward"].weights_sha256()}
    assert mixture(parts, {"checker": 1.0}, logit_scale=SCALE).weights_sha256() is None


def test_a_mixture_drops_the_text_towers_that_its_parts_can_do_without(parts: dict[str, Reward], tmp_path: Path) -> None:
    """ImageReward's text encoder attends to the image, so it stays."""
    write_tiny_clip(tmp_path / "clip")
    own = parts | {"hps": load_scorer("clip", tmp_path / "clip", dtype=FLOAT64, device=CPU)}
    mixed, pixels = mixture(own, WEIGHTS[0], logit_scale=SCALE), pixels_of(3)
    text = mixed.encode_text(TOY_CAPTIONS)
    before = mixed.score(pixels, text)
    small = without_text(mixed)
    assert isinstance(small, DifferentiableReward)
    assert torch.equal(small.score(pixels, text), before)
    assert not hasattr(own["hps"].model, "text_model")


def test_a_reward_that_has_no_text_tower_of_its_own_stays_as_it_is(parts: dict[str, Reward]) -> None:
    assert without_text(parts["checker"]) is parts["checker"]
    assert without_text(parts["image-reward"]) is parts["image-reward"]
