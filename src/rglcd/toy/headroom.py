"""Whether a reward has something to give in the toy's world: the gates that need the trained teacher, expert and judge together."""

from dataclasses import dataclass
from typing import Final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from rglcd.toy.codec import coded
from rglcd.toy.gates import Gate, Interval, best_of, correlation_within, gate
from rglcd.toy.judge import ToyJudge
from rglcd.toy.measuring import NUM_STEPS, expert_scores, judge_scores, picture_figures, real_pictures
from rglcd.toy.raters import Group, prefers_first, raters, traits
from rglcd.toy.scene import Scene, caption, shuffled, split
from rglcd.toy.teacher import GUIDANCE, drawings
from rglcd.toy.teacher_networks import sample
from rglcd.toy.web import NEAT

SEED: Final = 77
FEW_STEPS: Final = (1, 2, 4, 8)


@dataclass(frozen=True)
class Models:
    """The frozen models of a folder, opened."""

    teacher: StableDiffusionPipeline
    expert: CLIPModel
    tokenizer: CLIPTokenizer
    judge: ToyJudge

    def expert_of(self, pixels: Tensor, captions: list[str]) -> Tensor:
        return expert_scores(self.expert, self.tokenizer, pixels, captions)

    def judge_of(self, pixels: Tensor, captions: list[str]) -> Tensor:
        return judge_scores(self.judge, pixels, captions)


@dataclass(frozen=True)
class Headroom:
    """The figures of the teacher's pictures in fifty steps, four of each held-out caption, as two scorers see them."""

    correlation: float
    best_of_four: Interval
    pictures: dict[str, float]
    judge_of_teacher: float
    judge_of_neat: float
    pairs: float

    def gates(self) -> list[Gate]:
        return [
            gate("teacher in 50 steps: right", self.pictures["right"]),
            gate("teacher in 50 steps: mean of the judge's scores", self.judge_of_teacher),
            gate("judge: neat real pictures above the teacher's", self.judge_of_neat - self.judge_of_teacher),
            gate("expert: pairs of teacher's pictures ordered as raters do", self.pairs),
            gate("expert and judge: correlation within a caption", self.correlation),
            gate("best of four by the expert wins by the judge: lower bound", self.best_of_four.low),
        ]


def measure_headroom(models: Models, *, num_captions: int | None = None, num_steps: int = NUM_STEPS) -> Headroom:
    """Draw four pictures of each held-out caption in fifty steps, and one in few steps; score them all."""
    scenes = shuffled(split().held_out, "gates")[:num_captions]
    captions = [caption(scene) for scene in scenes]
    rounds = [sample(models.teacher, captions, num_steps=num_steps, guidance=GUIDANCE, seed=SEED + turn) for turn in range(4)]
    expert = torch.stack([models.expert_of(pixels, captions) for pixels in rounds], dim=1)
    judge = torch.stack([models.judge_of(pixels, captions) for pixels in rounds], dim=1)
    neat = _neat_as_decoded(models.teacher.vae, len(scenes))
    return Headroom(
        correlation=correlation_within(expert, judge),
        best_of_four=best_of(expert, judge),
        pictures=picture_figures(torch.cat(rounds), list(scenes) * len(rounds)),
        judge_of_teacher=judge.mean().item(),
        judge_of_neat=models.judge_of(neat, captions).mean().item(),
        pairs=_pairs_ordered(models, scenes, captions, rounds),
    )


def _neat_as_decoded(codec: AutoencoderKL, count: int) -> Tensor:
    with torch.no_grad():
        return coded(codec, real_pictures(count, NEAT))


def _pairs_ordered(models: Models, scenes: list[Scene], captions: list[str], rounds: list[Tensor]) -> float:
    """Of two of the teacher's pictures of a held-out caption, how often the expert prefers the one that a rater of its group does."""
    few = drawings(models.teacher, captions, steps=FEW_STEPS, guidances=(GUIDANCE,), seed=SEED + 100)
    kinds = [*few.split(len(captions)), *rounds[:2]]
    seen = torch.stack([traits(pixels, captions) for pixels in kinds])
    scores = torch.stack([models.expert_of(pixels, captions) for pixels in kinds])
    first, second = torch.triu_indices(len(kinds), len(kinds), offset=1)
    draws = torch.Generator().manual_seed(SEED)
    label = prefers_first(raters(Group.EXPERTS), seen[first].flatten(0, 1), seen[second].flatten(0, 1), draws)
    higher = (scores[first] > scores[second]).flatten()
    decided = label != 0.5
    return (higher == (label > 0.5))[decided].float().mean().item()
