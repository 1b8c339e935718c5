"""The aesthetic predictors equal their authors' code: a head on CLIP's normalised image embedding."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPModel

from rglcd.errors import InputError
from rglcd.models.checkpoint_import import read_checkpoint
from rglcd.rewards.conversion import CONVERTERS
from rglcd.rewards.protocol import DifferentiableReward, Reward
from rglcd.rewards.registry import load_scorer
from tests.rewards.published_models import CPU, FLOAT32, FLOAT64, publish_heads
from tests.tiny_models import PROJECTION_WIDTH, RESOLUTION, write_tiny_clip

HALF = torch.bfloat16
KINDS = ("aesthetic-v1", "aesthetic-v2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("aesthetic")
    published = publish_heads(root / "published", width=PROJECTION_WIDTH)
    for kind, path in zip(KINDS, published, strict=True):
        write_tiny_clip(root / kind)
        CONVERTERS[kind](read_checkpoint(path), root / kind)
    return {kind: root / kind for kind in KINDS} | {"published": root / "published"}


def load(folder: Path, dtype: torch.dtype = FLOAT32) -> Reward:
    return load_scorer("aesthetic-v1", folder, dtype=dtype, device=CPU, logit_scale=1.0)


def reference_head(kind: str, folder: Path) -> nn.Module:
    """aesthetic-predictor's README, and simple_inference.py of improved-aesthetic-predictor."""
    if kind == "aesthetic-v1":
        head: nn.Module = nn.Linear(PROJECTION_WIDTH, 1)
        path = folder / "sa_0_4_vit_l_14_linear.pth"
    else:
        head = nn.Module()
        head.layers = nn.Sequential(
            nn.Linear(PROJECTION_WIDTH, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )
        head.forward = lambda x: head.layers(x)
        path = folder / "sac+logos+ava1-l14-linearMSE.pth"
    head.load_state_dict(torch.load(path, weights_only=True))
    return head.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_aesthetic_score_is_the_published_head_on_the_normalised_clip_embedding(folders: dict[str, Path], kind: str) -> None:
    reward, clip = load(folders[kind]), CLIPModel.from_pretrained(folders[kind]).eval()
    pixels = torch.rand(5, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        features = clip.visual_projection(clip.vision_model((pixels - mean) / std).pooler_output)
        theirs = reference_head(kind, folders["published"])(features / features.norm(dim=-1, keepdim=True)).squeeze(1)
    torch.testing.assert_close(reward.score(pixels, reward.encode_text(["a"] * 5)), theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_aesthetic_score_at_pixels_equals_the_finite_difference(folders: dict[str, Path], kind: str) -> None:
    reward = load(folders[kind], FLOAT64)
    assert isinstance(reward, DifferentiableReward)
    generator, step = torch.Generator().manual_seed(1), 1e-6
    text = reward.encode_text(["", ""])
    assert text.shape == (2, 0)
    pixels = (0.3 + 0.4 * torch.rand(2, 3, 24, 20, generator=generator, dtype=FLOAT64)).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(pixels, text).sum(), pixels)
    direction = torch.randn(pixels.shape, generator=generator, dtype=FLOAT64)
    with torch.no_grad():
        up, down = (reward.score(pixels + sign * step * direction, text).sum() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx((up - down).item() / (2 * step), rel=1e-5)


def test_aesthetic_head_for_another_clip_width_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(folders["aesthetic-v1"], tmp_path / "other"))
    CONVERTERS["aesthetic-v1"](read_checkpoint(publish_heads(tmp_path / "published", width=768)[0]), other)
    with pytest.raises(InputError, match=f"the head takes 768 features and the CLIP model gives {PROJECTION_WIDTH}"):
        load(other)


def test_aesthetic_folder_without_a_head_is_refused(tmp_path: Path) -> None:
    write_tiny_clip(tmp_path / "clip")
    with pytest.raises(InputError, match=r"head\.safetensors cannot be read as a score head"):
        load(tmp_path / "clip")


@pytest.mark.parametrize("kind", KINDS)
def test_aesthetic_head_stays_float32_with_a_half_precision_tower(folders: dict[str, Path], kind: str) -> None:
    pixels = torch.rand(3, 3, RESOLUTION + 6, RESOLUTION, generator=torch.Generator().manual_seed(0))
    full, half = (reward.score(pixels, reward.encode_text(["", "", ""])) for reward in map(partial(load, folders[kind]), (FLOAT32, HALF)))
    assert half.dtype == FLOAT32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0.02)
