"""Quality measurements of the toy's shipped models, on captions that only the judge was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, ResNetModel

from rglcd.toy.checker import caption_indices, check
from rglcd.toy.expert import changed, hard_negative_accuracy
from rglcd.toy.features import classify
from rglcd.toy.judge import ToyJudge
from rglcd.toy.scene import ATTRIBUTES, VALUES, Scene, caption, split
from rglcd.toy.teacher import GUIDANCE, sample
from rglcd.toy.training import draw_pixels

GATE_SEED: Final = 90_000_000  # of the real pictures; no training draws from here
NUM_STEPS: Final = 50


@dataclass(frozen=True)
class Shares:
    """The shares of `count` pictures that are right, in whole and by attribute."""

    count: int
    whole: float
    attributes: dict[str, float]


def held_out_scenes(count: int) -> list[Scene]:
    """The held-out scenes, over and over."""
    scenes = split().held_out
    return [scenes[number % len(scenes)] for number in range(count)]


def checker_shares(*, count: int) -> Shares:
    """The checker on real pictures."""
    pixels = draw_pixels(split().held_out, count=count, first_seed=GATE_SEED)
    return shares(check(pixels, _captions(held_out_scenes(count))))


@torch.no_grad()
def codec_shares(codec: AutoencoderKL, *, count: int) -> Shares:
    """The checker on what the codec makes of real pictures, by way of its posterior's mode."""
    pixels = draw_pixels(split().held_out, count=count, first_seed=GATE_SEED)
    decoded = [codec.decode(codec.encode(part * 2 - 1).latent_dist.mode()).sample for part in torch.split(pixels, 128)]
    return shares(check(torch.cat(decoded) / 2 + 0.5, _captions(held_out_scenes(count))))


def teacher_shares(pipeline: StableDiffusionPipeline, *, count: int, num_steps: int = NUM_STEPS, guidance: float = GUIDANCE) -> Shares:
    """The checker on the teacher's pictures of held-out captions."""
    captions = _captions(held_out_scenes(count))
    return shares(check(sample(pipeline, captions, num_steps=num_steps, guidance=guidance, seed=0), captions))


def expert_shares(expert: CLIPModel, tokenizer: CLIPTokenizer, *, count: int) -> Shares:
    """Whether the caption of a real picture beats captions with one attribute changed; chance is a half."""
    pixels = draw_pixels(split().held_out, count=count, first_seed=GATE_SEED)
    by_attribute = hard_negative_accuracy(expert, tokenizer, pixels, held_out_scenes(count))
    return Shares(count, sum(by_attribute.values()) / len(by_attribute), by_attribute)


@torch.no_grad()
def judge_shares(judge: ToyJudge, *, count: int) -> Shares:
    """Balanced accuracy on real pictures: own captions accepted, captions with one attribute changed refused."""
    scenes = held_out_scenes(count)
    pixels = draw_pixels(split().held_out, count=count, first_seed=GATE_SEED)
    accepted = (judge.score(pixels, judge.encode_text(_captions(scenes))) > 0.5).float().mean()
    by_attribute = {}
    for attribute, values in zip(ATTRIBUTES, VALUES, strict=True):
        refusals = [
            judge.score(pixels, judge.encode_text(_captions([changed(scene, attribute, turn) for scene in scenes])))
            for turn in range(1, len(values))
        ]
        refused = (torch.stack(refusals) <= 0.5).float().mean()
        by_attribute[attribute] = float((accepted + refused) / 2)
    return Shares(count, sum(by_attribute.values()) / len(by_attribute), by_attribute)


@torch.no_grad()
def feature_shares(network: ResNetModel, classifier: nn.Linear, *, count: int) -> Shares:
    """The feature network's own classifier on real pictures."""
    pixels = draw_pixels(split().held_out, count=count, first_seed=GATE_SEED)
    truth = caption_indices(_captions(held_out_scenes(count)))
    logits = classify(network, classifier, pixels)
    return shares(torch.stack([part.argmax(1) for part in logits], dim=1) == truth)


def shares(right: Tensor) -> Shares:
    """The shares of a bool (B, 5) table."""
    columns = right.float().mean(0).tolist()
    return Shares(len(right), right.all(1).float().mean().item(), dict(zip(ATTRIBUTES, columns, strict=True)))


def _captions(scenes: Sequence[Scene]) -> list[str]:
    return [caption(scene) for scene in scenes]
