"""Published reward models give the scores of their reference implementations, on the same weights, pictures and captions.

The references ran in environments of their own (tests/assets/rewards/build.py): hpsv2 1.2.0, open_clip 3.3.0, image-reward 1.5.
"""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel

from rglcd.rewards.protocol import DifferentiableReward, Reward
from rglcd.rewards.registry import load_scorer
from tests.assets.rewards.published import CAPTIONS, pictures
from tests.rewards.published_models import CPU, FLOAT32, answers, converted, pixels_of_pictures

KINDS = ("hpsv2", "clipscore", "imagereward")
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {kind: converted(kind, root / kind) for kind in (*KINDS, "pickscore")}


def open_published(kind: str, folder: Path, dtype: torch.dtype = FLOAT32) -> Reward:
    settings = {"form": "raw"} if kind == "imagereward" else {}
    return load_scorer(kind, folder, dtype=dtype, device=CPU, **settings)


def all_pairs(reward: Reward, pictures: list[Tensor]) -> Tensor:
    """Scores (P, C) of every picture with every caption."""
    text = reward.encode_text(CAPTIONS)
    return torch.stack([reward.score(picture.expand(len(text), -1, -1, -1), text) for picture in pictures])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_references_on_their_preprocessed_images(folders: dict[str, Path], kind: str) -> None:
    theirs, reward = answers(kind), open_published(kind, folders[kind])
    seen = list(theirs["pixels"].mul(STD).add(MEAN)[:, None])
    torch.testing.assert_close(all_pairs(reward, seen), theirs["scores"], rtol=0, atol=1e-5)
    # They tell pictures and captions apart: equality is not that of constants.
    assert theirs["scores"].std(dim=0).min() > 0.01
    assert theirs["scores"].std(dim=1).min() > 0.01


# What the whole way from the picture costs. hpsv2 resizes tensors as we do; the others resize PIL images, which are rounded to
# whole levels in both passes: pictures of the tower's own size show none of it.
@pytest.mark.parametrize(("kind", "resized", "as_is"), [("hpsv2", 1e-5, 1e-5), ("clipscore", 2e-3, 1e-5), ("imagereward", 2e-2, 1e-5)])
def test_scores_of_raw_images_equal_the_references_up_to_pils_rounding(
    folders: dict[str, Path], kind: str, resized: float, as_is: float
) -> None:
    theirs, reward = answers(kind), open_published(kind, folders[kind])
    off = (all_pairs(reward, pixels_of_pictures()) - theirs["scores"]).abs().amax(dim=1)
    side = theirs["pixels"].shape[-1]
    for picture, distance in zip(pictures(), off.tolist(), strict=True):
        assert distance < (as_is if picture.size == (side, side) else resized), (picture.size, distance)


@pytest.mark.parametrize("kind", ["hpsv2", "clipscore"])
def test_text_features_and_temperature_equal_the_references(folders: dict[str, Path], kind: str) -> None:
    """The captions hold entities, curly quotes, capitals, an accent, more tokens than fit, and nothing at all."""
    theirs, reward = answers(kind), open_published(kind, folders[kind])
    torch.testing.assert_close(reward.encode_text(CAPTIONS), theirs["text"], rtol=0, atol=1e-5)
    assert reward.logit_scale == pytest.approx(theirs["logit_scale"].item(), rel=1e-6)
    assert reward.text_width == theirs["text"].shape[1]


def test_imagereward_token_ids_equal_the_references(folders: dict[str, Path]) -> None:
    reward = open_published("imagereward", folders["imagereward"])
    assert torch.equal(reward.encode_text(CAPTIONS), answers("imagereward")["tokens"])
    assert reward.text_width == 35


def test_pickscore_equals_transformers_clip_model_and_processor(folders: dict[str, Path]) -> None:
    """As its model card has it: CLIPModel's features, the processor of CLIP-H, here with the tower's tiny size."""
    folder = folders["pickscore"]
    reward, clip = open_published("pickscore", folder), CLIPModel.from_pretrained(folder).eval()
    side = clip.config.vision_config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pixels = torch.cat([processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures()])
    tokens = reward.tokenizer(list(CAPTIONS), padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        theirs = clip(pixel_values=pixels, **tokens)
    cosines = theirs.logits_per_image / clip.logit_scale.exp()
    torch.testing.assert_close(all_pairs(reward, list(pixels.mul(STD).add(MEAN)[:, None])), cosines, rtol=0, atol=1e-5)
    off = (all_pairs(reward, pixels_of_pictures()) - cosines).abs().amax(dim=1)
    assert off.max() < 2e-3
    assert off[[picture.size == (side, side) for picture in pictures()].index(True)] < 1e-5
    assert reward.logit_scale == pytest.approx(clip.logit_scale.exp().item())


def test_imagereward_hinge_has_zero_gradient_above_two_and_the_scores_below(folders: dict[str, Path]) -> None:
    raw = open_published("imagereward", folders["imagereward"])
    hinge = load_scorer("imagereward", folders["imagereward"], dtype=FLOAT32, device=CPU, form="hinge")
    scores = all_pairs(raw, pixels_of_pictures())
    torch.testing.assert_close(all_pairs(hinge, pixels_of_pictures()), -torch.relu(2 - scores))
    assert hinge.range == (-float("inf"), 0.0)
    # A head that scores everything three higher pushes the best above two.
    with torch.no_grad():
        for reward in (raw, hinge):
            reward.network.head[-1].bias += 3 * 1.0333394966054072
    picture, text = pixels_of_pictures()[3].requires_grad_(), raw.encode_text(CAPTIONS[:1])
    assert raw.score(picture, text) > 2
    (gradient,) = torch.autograd.grad(hinge.score(picture, text).sum(), picture)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*KINDS, "pickscore"])
def test_half_precision_scorers_keep_features_and_scores_in_float32(folders: dict[str, Path], kind: str, dtype: torch.dtype) -> None:
    """Pictures of any size are resized and scores compared in float32: no two pairs get the same score by rounding."""
    full, half = (all_pairs(open_published(kind, folders[kind], one), pixels_of_pictures()) for one in (FLOAT32, dtype))
    assert half.dtype == FLOAT32
    assert (half - full).abs().max() < 16 * torch.finfo(dtype).eps * full.std()
    assert half.unique().numel() == half.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_text_features_are_unchanged_by_storage_as_float32(folders: dict[str, Path], kind: str) -> None:
    reward = open_published(kind, folders[kind])
    text, picture = reward.encode_text(CAPTIONS), pixels_of_pictures()[2].expand(len(CAPTIONS), -1, -1, -1)
    assert torch.equal(reward.score(picture, text.float()), reward.score(picture, text))
    assert not text.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_the_batch(folders: dict[str, Path], kind: str) -> None:
    reward = open_published(kind, folders[kind])
    batch = torch.rand(len(CAPTIONS), 3, 40, 40, generator=torch.Generator().manual_seed(0))
    text = reward.encode_text(CAPTIONS)
    alone = torch.cat([reward.score(batch[row : row + 1], text[row : row + 1]) for row in range(len(CAPTIONS))])
    torch.testing.assert_close(reward.score(batch, text), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(32, 32), (28, 28), (40, 24)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_scores_at_pixels_equals_the_finite_difference(folders: dict[str, Path], kind: str, width: int, height: int) -> None:
    reward = open_published(kind, folders[kind], torch.float64)
    assert isinstance(reward, DifferentiableReward)
    generator, step = torch.Generator().manual_seed(1), 1e-6
    text = reward.encode_text(CAPTIONS)
    # Away from black and white, where what PIL cuts has no gradient.
    pixels = (0.3 + 0.4 * torch.rand(len(CAPTIONS), 3, height, width, generator=generator, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(pixels, text).sum(), pixels)
    for _ in range(3):
        direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            up, down = (reward.score(pixels + sign * step * direction, text).sum() for sign in (1, -1))
        assert (gradient * direction).sum().item() == pytest.approx((up - down).item() / (2 * step), rel=1e-6)
    # Every sample's score depends on its own pixels.
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_reference_images_are_pil_images_of_several_shapes() -> None:
    assert {type(picture) for picture in pictures()} == {Image.Image}
    assert len({picture.size for picture in pictures()}) == 5
