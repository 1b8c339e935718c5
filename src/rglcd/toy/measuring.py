"""Measures the toy's models on held-out captions, as the gates want it."""

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, ResNetModel

from rglcd.toy.checker import MAX_UNTIDINESS, Measured, measure
from rglcd.toy.codec import coded
from rglcd.toy.features import classify, true_values
from rglcd.toy.gates import balanced_accuracy
from rglcd.toy.judge import ToyJudge
from rglcd.toy.scene import ATTRIBUTES, VALUES, Scene, caption, shuffled, split
from rglcd.toy.scorers import seen_by_expert
from rglcd.toy.teacher import GUIDANCE
from rglcd.toy.teacher_networks import sample, tokenize
from rglcd.toy.web import NEAT, Mixture, draw_pixels, web_rows

GATE_SEED: Final = 90_000_000  # of the real pictures; no training draws from here
NUM_STEPS: Final = 50
FLAWED: Final = Mixture(flawed=100, wrong=0)


def held_out(count: int) -> list[Scene]:
    """Held-out scenes, over and over, in an order of their own."""
    scenes = shuffled(split().held_out, "gates")
    return [scenes[number % len(scenes)] for number in range(count)]


def real_pictures(count: int, mixture: Mixture) -> Tensor:
    """Pictures of `held_out` scenes, (count, 3, 32, 32) in [0, 1]: those of every mixture by the same seeds."""
    return draw_pixels(web_rows(held_out(count), range(GATE_SEED, GATE_SEED + count), mixture), first_seed=GATE_SEED)


def checker_figures(*, count: int) -> dict[str, float]:
    """The checker on real neat pictures."""
    return _right(measure(real_pictures(count, NEAT)), held_out(count))


@torch.no_grad()
def codec_figures(codec: AutoencoderKL, *, count: int) -> dict[str, float]:
    """The checker on what the codec makes of real pictures, and whether neat and flawed ones can still be told apart."""
    neat, flawed = (measure(coded(codec, real_pictures(count, mixture))) for mixture in (NEAT, FLAWED))
    told_apart = balanced_accuracy(neat.untidiness, flawed.untidiness, MAX_UNTIDINESS)
    return _right(neat, held_out(count)) | {"told apart": told_apart, "untidiness": neat.untidiness.median().item()}


def teacher_figures(
    pipeline: StableDiffusionPipeline | StableDiffusion3Pipeline, *, count: int, num_steps: int = NUM_STEPS
) -> dict[str, float]:
    """The checker on the teacher's pictures of held-out captions."""
    scenes = held_out(count)
    pixels = sample(pipeline, [caption(scene) for scene in scenes], num_steps=num_steps, guidance=GUIDANCE, seed=0)
    return picture_figures(pixels, scenes)


def picture_figures(pixels: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """The shares of pictures (N, 3, 32, 32) that are right, by attribute and in whole, neat, and both."""
    seen = measure(pixels)
    right, neat = _truth(scenes) == seen.values, seen.untidiness < MAX_UNTIDINESS
    return _right(seen, scenes) | {"neat": neat.float().mean().item(), "pleasing": (right.all(1) & neat).float().mean().item()}


@torch.no_grad()
def expert_scores(expert: CLIPModel, tokenizer: CLIPTokenizer, pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """Cosines (N,) of pictures (N, 3, 32, 32) in [0, 1] and their captions."""
    scores = []
    for start in range(0, len(captions), 128):
        chunk = slice(start, start + 128)
        image = expert.visual_projection(expert.vision_model(seen_by_expert(pixels[chunk])).pooler_output)
        text = expert.text_projection(expert.text_model(tokenize(tokenizer, captions[chunk])).pooler_output)
        scores.append(F.cosine_similarity(image, text, dim=1))
    return torch.cat(scores)


@torch.no_grad()
def judge_scores(judge: ToyJudge, pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """The judge's scores (N,) of pictures (N, 3, 32, 32) in [0, 1] and their captions."""
    parts = zip(pixels.split(128), judge.encode_text(captions).split(128), strict=True)
    return torch.cat([judge.score(some, words) for some, words in parts])


def expert_figures(expert: CLIPModel, tokenizer: CLIPTokenizer, *, count: int) -> dict[str, float]:
    """How often the caption of a real neat picture beats one with one attribute changed, by attribute; chance is a half."""
    pixels, scenes = real_pictures(count, NEAT), held_out(count)
    own = expert_scores(expert, tokenizer, pixels, [caption(scene) for scene in scenes])
    beaten = {
        attribute: torch.cat([own > expert_scores(expert, tokenizer, pixels, others) for others in _other_captions(scenes, attribute)])
        for attribute in ATTRIBUTES
    }
    return {attribute: won.float().mean().item() for attribute, won in beaten.items()}


def judge_figures(judge: ToyJudge, codec: AutoencoderKL, *, count: int) -> dict[str, float]:
    """Balanced accuracy on real pictures as drawn: neat ones of their captions accepted, flawed ones and changed captions refused."""
    scenes = held_out(count)
    captions = [caption(scene) for scene in scenes]
    neat, flawed = real_pictures(count, NEAT), real_pictures(count, FLAWED)
    accepted = (judge_scores(judge, neat, captions) > 0.5).float().mean().item()
    refused = {
        attribute: torch.cat([judge_scores(judge, neat, others) <= 0.5 for others in _other_captions(scenes, attribute)])
        for attribute in ATTRIBUTES
    }
    refused["flawed"] = judge_scores(judge, flawed, captions) <= 0.5
    by_kind = {kind: (accepted + no.float().mean().item()) / 2 for kind, no in refused.items()}
    decoded = judge_scores(judge, coded(codec, neat), captions)
    return {"right": sum(by_kind.values()) / len(by_kind), **by_kind, "neat pictures' score": decoded.mean().item()}


@torch.no_grad()
def feature_figures(network: ResNetModel, classifier: nn.Linear, *, count: int) -> dict[str, float]:
    """The feature network's own classifier on real pictures, half of them with flaws."""
    rows = web_rows(held_out(count), range(GATE_SEED, GATE_SEED + count), Mixture(flawed=50, wrong=0))
    logits = classify(network, classifier, draw_pixels(rows, first_seed=GATE_SEED))
    right = torch.stack([part.argmax(1) for part in logits], dim=1) == true_values(rows)
    return dict(zip((*ATTRIBUTES, "neat"), right.float().mean(0).tolist(), strict=True))


def _other_captions(scenes: Sequence[Scene], attribute: str) -> list[list[str]]:
    """The scenes' captions with one attribute changed, once for every other value."""
    place = ATTRIBUTES.index(attribute)
    values = VALUES[place]
    changed = []
    for turn in range(1, len(values)):
        rows = []
        for scene in scenes:
            parts = [getattr(scene, name) for name in ATTRIBUTES]
            parts[place] = values[(values.index(parts[place]) + turn) % len(values)]
            rows.append(caption(Scene(*parts)))
        changed.append(rows)
    return changed


def _truth(scenes: Sequence[Scene]) -> Tensor:
    return torch.tensor([scene.indices for scene in scenes])


def _right(seen: Measured, scenes: Sequence[Scene]) -> dict[str, float]:
    right = seen.values == _truth(scenes)
    return {"right": right.all(1).float().mean().item()} | dict(zip(ATTRIBUTES, right.float().mean(0).tolist(), strict=True))
