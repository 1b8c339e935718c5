"""The shipped models, opened by their own libraries and measured on held-out captions."""

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor
from transformers import AutoModel, CLIPModel, CLIPTokenizer

from rglcd.toy.build import BuildSettings, parts
from rglcd.toy.checker import check
from rglcd.toy.expert import normalise
from rglcd.toy.gates import GATE_SEED, checker_shares, codec_shares, expert_shares, judge_shares, shares
from rglcd.toy.judge import ToyJudge
from rglcd.toy.model_folder import read_ledger
from rglcd.toy.scene import caption, split
from rglcd.toy.teacher import GUIDANCE, sample
from rglcd.toy.training import draw_pixels

TOY = Path(__file__).parents[2] / "toy"
CAPTIONS = [caption(scene) for scene in split().held_out]
COUNT = 2 * len(CAPTIONS)
MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def teacher() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(TOY / "teacher")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def drawn(teacher: StableDiffusionPipeline) -> Tensor:
    return sample(teacher, 4 * CAPTIONS, num_steps=50, guidance=GUIDANCE, seed=0)


@pytest.fixture(scope="module")
def judge() -> ToyJudge:
    return ToyJudge.from_pretrained(TOY / "judge")


def test_shipped_models_are_small_and_trained_with_the_codes_settings() -> None:
    files = [path for path in TOY.rglob("*") if path.is_file() and TOY / "second" not in path.parents]  # an edition of its own
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    ledger = read_ledger(TOY)
    for part in parts(TOY, BuildSettings()):
        assert ledger[part.name]["settings"] == part.resolved_settings


def test_checker_is_right_on_drawn_pictures() -> None:
    assert checker_shares(count=COUNT).whole >= 0.99


def test_toy_vae_keeps_every_attribute(teacher: StableDiffusionPipeline) -> None:
    assert codec_shares(teacher.vae, count=COUNT).whole >= 0.95


def test_toy_latents_are_standardised_with_a_nonzero_posterior_deviation(teacher: StableDiffusionPipeline) -> None:
    pixels = draw_pixels(split().held_out, count=COUNT, first_seed=GATE_SEED)
    with torch.no_grad():
        posterior = teacher.vae.encode(pixels * 2 - 1).latent_dist
    factor = teacher.vae.config.scaling_factor
    assert bool(((posterior.mean * factor).std((0, 2, 3)) - 1).abs().amax() < 0.1)
    assert bool(((posterior.std * factor).mean((0, 2, 3)) > 1e-3).all())


def test_teacher_draws_held_out_captions(drawn: Tensor) -> None:
    right = shares(check(drawn, 4 * CAPTIONS))
    assert right.whole >= 0.85
    assert min(right.attributes.values()) >= 0.95


def test_expert_is_accurate_but_not_perfect() -> None:
    expert, tokenizer = CLIPModel.from_pretrained(TOY / "expert"), CLIPTokenizer.from_pretrained(TOY / "expert")
    assert 0.85 <= expert_shares(expert, tokenizer, count=COUNT).whole <= 0.999


def test_gradient_of_the_expert_moves_a_picture_towards_its_caption() -> None:
    expert, tokenizer = CLIPModel.from_pretrained(TOY / "expert"), CLIPTokenizer.from_pretrained(TOY / "expert")
    pixels = draw_pixels(split().held_out, count=32, first_seed=GATE_SEED)
    ids = tokenizer(CAPTIONS[1:33], padding="max_length", return_tensors="pt").input_ids

    def score(pictures: Tensor) -> Tensor:
        return expert(input_ids=ids, pixel_values=normalise(pictures)).logits_per_image.diagonal().mean()

    pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(score(pixels), pixels)
    with torch.no_grad():
        assert score(pixels + 0.01 * gradient.sign()) > score(pixels)


def test_judge_accepts_matching_and_refuses_changed_captions(judge: ToyJudge) -> None:
    assert judge_shares(judge, count=COUNT).whole >= 0.9


def test_judge_and_checker_agree_on_the_teachers_pictures(judge: ToyJudge, drawn: Tensor) -> None:
    text = judge.encode_text(4 * CAPTIONS)
    own = judge.score(drawn, text)
    strangers = judge.score(drawn, text.roll(7, dims=0))
    assert own.mean() > 0.8
    assert strangers.mean() < 0.2


def test_feature_network_classifies_attributes() -> None:
    network = AutoModel.from_pretrained(TOY / "features").eval()
    pixels = draw_pixels(split().held_out, count=COUNT, first_seed=GATE_SEED)
    with torch.no_grad():
        features = network(pixel_values=normalise(pixels)).pooler_output.flatten(1)
    assert features.shape == (COUNT, 64)
    first, second = features.split(len(CAPTIONS))
    nearest = torch.cdist(first, second).argmin(1)
    # Measured .77 with another picture of the same caption among 108 as the nearest; chance is .01.
    assert (nearest == torch.arange(len(CAPTIONS))).float().mean() > 0.5
