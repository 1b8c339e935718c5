"""Training of the toy's reward model (the expert) and of its held-out scorer (the judge) on simulated raters' preferences.

The expert is a CLIP that sees the picture at half its resolution, as a published reward model sees 224 of 512 pixels. It learns as HPSv2
did (Wu et al. 2023): first which caption belongs to which picture, then which of two pictures of a caption raters prefer. The judge is a
convolutional network of its own that learns both at once. They share no picture, no rater and no seed.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from rglcd.rewards.preprocessing import shortest_side_cropped
from rglcd.toy.judge import JudgeShape, ToyJudge
from rglcd.toy.preprocessing import normalise
from rglcd.toy.raters import Group, prefers_first, raters
from rglcd.toy.resuming import Loop
from rglcd.toy.scene import VALUES, all_scenes, caption
from rglcd.toy.teacher_networks import tokenize
from rglcd.toy.tokenizer import MAX_TOKENS
from rglcd.toy.training import Curve, cosine, descend, draw_indices

EXPERT_SIDE: Final = 16  # pixels


@dataclass(frozen=True)
class TrainingPictures:
    """Pictures of all scenes in turn, picture i of scene i % 600.

    `matched` (M, 3, 32, 32) show their captions, neatly where `neat` (M,) says so; `compared` (N, 3, 32, 32) are of every kind, the
    teacher's among them, and have raters' `traits` (N, 7).
    """

    matched: Tensor
    neat: Tensor
    compared: Tensor
    traits: Tensor


@dataclass(frozen=True)
class ExpertSettings:
    """How the expert is trained; a change of any of these trains it again."""

    seed: int = 31
    num_pictures: int = 9600
    latent_noise: float = 0.15
    patch: int = 2
    width: int = 64
    num_layers: int = 3
    num_heads: int = 4
    projection: int = 48
    batch: int = 64
    num_other_captions: int = 96
    learning_rate: float = 1.5e-3
    num_steps: int = 1800
    pixel_noise: float = 0.03
    num_pairs: int = 48
    preference_rate: float = 5e-4
    num_preference_steps: int = 2000


@dataclass(frozen=True)
class JudgeSettings:
    """How the judge is trained; a change of any of these trains it again."""

    seed: int = 41
    num_pictures: int = 9600
    latent_noise: float = 0.3
    shape: JudgeShape = field(default_factory=JudgeShape)
    batch: int = 64
    num_pairs: int = 32
    learning_rate: float = 2e-3
    num_steps: int = 4000
    pixel_noise: float = 0.04
    label_smoothing: float = 0.02


def train_expert(
    tokenizer: CLIPTokenizer, pictures: TrainingPictures, settings: ExpertSettings, *, states: Path | None = None
) -> tuple[CLIPModel, Curve]:
    """Contrast first, then preferences beside it."""
    torch.manual_seed(settings.seed)
    model = _build_clip(tokenizer, settings)
    ids = tokenize(tokenizer, [caption(scene) for scene in all_scenes()])
    curve = Curve("expert")
    draws = torch.Generator().manual_seed(settings.seed + 1)
    lesson = _ExpertLesson(model, ids, pictures, settings, draws)
    for act, rate, steps in (
        ("contrast", settings.learning_rate, settings.num_steps),
        ("preference", settings.preference_rate, settings.num_preference_steps),
    ):
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2, fused=True)
        for step in Loop(model, optimizer, draws, curve).steps(steps, states and states / f"expert-{act}.pt"):
            cosine(optimizer, rate, step=step, total=steps)
            loss, figures = lesson.contrast()
            if act == "preference":
                preferred, more = lesson.preference()
                loss, figures = loss + preferred, figures | more
            descend(loss, optimizer)
            curve.add(act, step, total=steps, loss=loss, **figures)
    return model.eval(), curve


def seen_by_expert(pixels: Tensor) -> Tensor:
    """Pictures in [0, 1] as the expert's vision tower has them: (B, 3, 16, 16) in [-1, 1]."""
    return normalise(shortest_side_cropped(pixels, EXPERT_SIDE))


class _ExpertLesson:
    """The expert's two losses, and the random draws that they share."""

    def __init__(self, model: CLIPModel, ids: Tensor, pictures: TrainingPictures, settings: ExpertSettings, draws: torch.Generator) -> None:
        self._model, self._ids, self._pictures, self._settings, self._draws = model, ids, pictures, settings, draws
        self._people = raters(Group.EXPERTS)

    def contrast(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Each picture against its own caption, the batch's, and some others (Radford et al. 2021)."""
        chosen = draw_indices(len(self._pictures.matched), self._settings.batch, self._draws)
        shown = chosen % len(self._ids)
        logits, pool = self._logits(self._pictures.matched[chosen], shown)
        own = torch.searchsorted(pool, shown)
        return F.cross_entropy(logits, own), {"right": (logits.argmax(1) == own).float().mean()}

    def preference(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Two pictures of a caption and a rater who prefers one of them (Bradley and Terry 1952)."""
        first, second = draw_pairs(self._pictures, self._settings.num_pairs, self._draws)
        label = prefers_first(self._people, self._pictures.traits[first], self._pictures.traits[second], self._draws)
        logits, pool = self._logits(self._pictures.compared[torch.cat([first, second])], (shown := first % len(self._ids)).repeat(2))
        scores = logits.gather(1, torch.searchsorted(pool, shown.repeat(2))[:, None]).view(2, -1)
        return paired(scores[0] - scores[1], label)

    def _logits(self, pixels: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosines (B, K) of noisy pictures and K captions, and the captions' numbers in ascending order."""
        others = draw_indices(len(self._ids), self._settings.num_other_captions, self._draws)
        pool = torch.cat([shown, others]).unique()
        noise = self._settings.pixel_noise * torch.randn(pixels.shape, generator=self._draws)
        seen = seen_by_expert((pixels + noise).clamp(0, 1))
        return self._model(input_ids=self._ids[pool], pixel_values=seen).logits_per_image, pool


def train_judge(pictures: TrainingPictures, settings: JudgeSettings, *, states: Path | None = None) -> tuple[ToyJudge, Curve]:
    """Does the picture show this caption, and neatly; and which of two pictures of a caption do raters prefer: at once."""
    torch.manual_seed(settings.seed)
    draws = torch.Generator().manual_seed(settings.seed + 1)
    captions = [caption(scene) for scene in all_scenes()]
    judge = ToyJudge(sorted({word for text in captions for word in text.split()}), settings.shape)
    words = judge.encode_text(captions)
    attributes = torch.tensor([scene.indices for scene in all_scenes()])
    people = raters(Group.JUDGES)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.learning_rate, weight_decay=1e-2, fused=True)
    curve = Curve("judge")
    for step in Loop(judge, optimizer, draws, curve).steps(settings.num_steps, states and states / "judge.pt"):
        cosine(optimizer, settings.learning_rate, step=step, total=settings.num_steps)
        chosen = draw_indices(len(pictures.matched), settings.batch, draws)
        claimed = _claims(attributes[chosen % len(words)], draws)
        target = ((claimed == attributes[chosen % len(words)]).all(1) & pictures.neat[chosen]).float()
        first, second = draw_pairs(pictures, settings.num_pairs, draws)
        label = prefers_first(people, pictures.traits[first], pictures.traits[second], draws)
        pixels = torch.cat([pictures.matched[chosen], pictures.compared[torch.cat([first, second])]])
        noise = settings.pixel_noise * torch.rand(len(pixels), 1, 1, 1, generator=draws) * torch.randn(pixels.shape, generator=draws)
        asked = torch.cat([words[_scene_numbers(claimed)], words[first % len(words)].repeat(2, 1)])
        logits = judge((pixels + noise).clamp(0, 1), asked)
        matching, left, right = logits.split([settings.batch, settings.num_pairs, settings.num_pairs])
        smooth = target * (1 - 2 * settings.label_smoothing) + settings.label_smoothing
        preferred, figures = paired(left - right, label)
        loss = F.binary_cross_entropy_with_logits(matching, smooth) + preferred
        descend(loss, optimizer)
        curve.add(
            "matching",
            step,
            total=settings.num_steps,
            loss=loss,
            right=((matching > 0) == (target > 0.5)).float().mean(),
            **figures,
        )
    return judge.eval(), curve


def draw_pairs(pictures: TrainingPictures, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two different pictures of one caption each, by their numbers in `compared`: two of (count,)."""
    num_scenes = len(all_scenes())
    rounds = len(pictures.compared) // num_scenes
    scene = draw_indices(num_scenes, count, draws)
    first = draw_indices(rounds, count, draws)
    second = (first + 1 + draw_indices(rounds - 1, count, draws)) % rounds
    return first * num_scenes + scene, second * num_scenes + scene


def paired(difference: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Bradley and Terry's loss of logit differences (B,) and labels 1, 1/2 or 0 (B,); and how many of the decided are right."""
    decided = label != 0.5
    agreed = ((difference > 0) == (label > 0.5))[decided].float().mean()
    return F.binary_cross_entropy_with_logits(difference, label.to(difference.dtype)), {"preferred": agreed}


def _claims(truth: Tensor, draws: torch.Generator) -> Tensor:
    """Attribute values to claim: the picture's own (1/2), its own but for one value (1/4), or another picture's (1/4)."""
    counts = torch.tensor([len(values) for values in VALUES])
    steps = 1 + (torch.rand(truth.shape, generator=draws) * (counts - 1)).long()
    single = F.one_hot(draw_indices(len(VALUES), len(truth), draws), len(VALUES))
    near = (truth + steps * single) % counts
    other = truth[torch.randperm(len(truth), generator=draws)]
    drawn = torch.rand(len(truth), 1, generator=draws)
    return truth.where(drawn < 0.5, near.where(drawn < 0.75, other))


def _scene_numbers(values: Tensor) -> Tensor:
    """Each row of attribute values as a place in `all_scenes()`, whose order is lexicographic."""
    number = torch.zeros(len(values), dtype=torch.int64)
    for column, choices in enumerate(VALUES):
        number = number * len(choices) + values[:, column]
    return number


def _build_clip(tokenizer: CLIPTokenizer, settings: ExpertSettings) -> CLIPModel:
    tower = {
        "hidden_size": settings.width,
        "intermediate_size": 2 * settings.width,
        "num_attention_heads": settings.num_heads,
        "projection_dim": settings.projection,
    }
    text = tower | {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"num_hidden_layers": settings.num_layers, "image_size": EXPERT_SIDE, "patch_size": settings.patch}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.projection))
