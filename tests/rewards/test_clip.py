"""A CLIP-type reward is transformers' own CLIP, with a gradient that reaches the pixels."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from rglcd.errors import InputError
from rglcd.rewards.clip import ClipReward
from rglcd.rewards.preprocessing import shortest_side_cropped
from rglcd.rewards.protocol import DifferentiableReward
from tests.tiny_models import PROJECTION_WIDTH, RESOLUTION, write_tiny_clip

CAPTIONS = ["a red circle", "b", "a caption that is far too long for the text tower", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clip")
    write_tiny_clip(root)
    return root


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ClipReward:
    return ClipReward.load(folder, dtype=dtype, device=torch.device("cpu"))


def pixels_of(size: int = RESOLUTION) -> torch.Tensor:
    return torch.rand(len(CAPTIONS), 3, size, size, generator=torch.Generator().manual_seed(1))


def test_scores_are_transformers_logits_over_their_scale(folder: Path) -> None:
    """On the same inputs: the pixels normalised as the folder says, the captions tokenised with their attention masks."""
    reward, clip, pixels = load(folder), CLIPModel.from_pretrained(folder).eval(), pixels_of()
    tokens = reward.tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        theirs = clip(pixel_values=(pixels - 0.5) / 0.25, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    cosines = (theirs.logits_per_image / clip.logit_scale.exp()).diagonal()
    torch.testing.assert_close(reward.score(pixels, reward.encode_text(CAPTIONS)), cosines, rtol=0, atol=1e-6)
    assert reward.logit_scale == pytest.approx(clip.logit_scale.exp().item())


def test_the_temperature_is_the_same_in_every_precision(folder: Path, tmp_path: Path) -> None:
    """CLIP's own, 100: its logarithm is 4.6052, of which bfloat16 keeps 4.59."""
    trained = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        trained.logit_scale.fill_(4.6052)
    shutil.copytree(folder, tmp_path / "trained")
    trained.save_pretrained(tmp_path / "trained")
    whole, half = load(tmp_path / "trained"), load(tmp_path / "trained", torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert whole.logit_scale == pytest.approx(100, rel=1e-4)
    assert half.logit_scale == whole.logit_scale


def test_scores_lie_in_the_announced_range_and_features_on_the_sphere(folder: Path) -> None:
    reward = load(folder)
    text = reward.encode_text(CAPTIONS)
    assert text.shape == (len(CAPTIONS), PROJECTION_WIDTH)
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(len(CAPTIONS)))
    assert not text.requires_grad
    low, high = reward.range
    scores = reward.score(pixels_of(), text)
    assert low <= scores.min() <= scores.max() <= high


def test_text_features_are_the_same_for_one_caption_and_for_many(folder: Path) -> None:
    reward = load(folder)
    alone = torch.cat([reward.encode_text([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(reward.encode_text(CAPTIONS), alone, rtol=0, atol=1e-6)


def test_the_gradient_at_the_pixels_is_the_finite_difference(folder: Path) -> None:
    reward = load(folder, torch.float64)
    text, pixels = reward.encode_text(CAPTIONS), pixels_of().double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(pixels, text).sum(), pixels)
    generator, step = torch.Generator().manual_seed(2), 1e-6
    for _ in range(3):
        direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            up, down = (reward.score(pixels + sign * step * direction, text).sum() for sign in (1, -1))
        assert (gradient * direction).sum().item() == pytest.approx((up - down).item() / (2 * step), rel=1e-6)


@pytest.mark.parametrize("size", [8, 24, 40])
def test_pixels_of_another_size_are_resized_as_pil_does_it_and_keep_their_gradient(folder: Path, size: int) -> None:
    """PIL rounds to whole levels after each of its two passes, and cuts what overshoots between them: hence the middle levels."""
    reward = load(folder)
    levels = np.random.default_rng(size).integers(64, 192, (size, size, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(levels).resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    pixels = (torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255).requires_grad_()
    ours = shortest_side_cropped(pixels, RESOLUTION)
    torch.testing.assert_close(ours[0], torch.from_numpy(theirs).permute(2, 0, 1), rtol=0, atol=1.5 / 255)
    (gradient,) = torch.autograd.grad(reward.score(pixels, reward.encode_text(["b"])).sum(), pixels)
    assert gradient.shape == pixels.shape
    assert gradient.abs().max() > 0


def test_a_clip_reward_is_a_differentiable_reward(folder: Path) -> None:
    reward = load(folder)
    assert isinstance(reward, DifferentiableReward)
    assert reward.differentiable
    assert reward.weights_sha256() == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("preprocessor_config.json", None, "preprocessor_config.json is missing"),
        ("preprocessor_config.json", "{}", "must give image_mean and image_std"),
        ("config.json", '{"architectures": ["SiglipModel"]}', "describes a SiglipModel, not a CLIPModel"),
        ("tokenizer.json", "{", "cannot be opened as a tokenizer"),
        ("model.safetensors", "no tensors", "cannot be opened as CLIPModel"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(folder: Path, tmp_path: Path, name: str, content: str | None, said: str) -> None:
    spoilt = Path(shutil.copytree(folder, tmp_path / "clip"))
    if content is None:
        (spoilt / name).unlink()
    else:
        (spoilt / name).write_text(content)
    with pytest.raises(InputError, match=said) as refusal:
        load(spoilt)
    assert "\n" not in str(refusal.value)


def test_the_normalisation_is_the_folders_own(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "clip"))
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]}
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    pixels = pixels_of()
    text = load(folder).encode_text(CAPTIONS)
    equivalent = (pixels - mean) / std * 0.25 + 0.5
    torch.testing.assert_close(load(other).score(pixels, text), load(folder).score(equivalent, text))


def test_without_its_text_tower_a_reward_gives_the_same_scores_and_gradient(folder: Path) -> None:
    whole, small = load(folder), load(folder).without_text()
    text = whole.encode_text(CAPTIONS)
    scores = []
    for reward in (whole, small):
        pixels = pixels_of().requires_grad_()
        reward.score(pixels, text).sum().backward()
        scores.append((reward.score(pixels, text).detach(), pixels.grad))
    assert all(torch.equal(*pair) for pair in zip(*scores, strict=True))
    names = {name.split(".")[0] for name, _ in small.model.named_parameters()}
    assert names == {"vision_model", "visual_projection", "logit_scale"}
    assert (small.logit_scale, small.text_width, small.weights_sha256()) == (whole.logit_scale, whole.text_width, whole.weights_sha256())
    assert small.without_text() is small
