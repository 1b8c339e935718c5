"""Training the toy's held-out scorer (the judge): on other pictures than the expert's, all captions, and decoded pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from rglcd.toy.judge import JudgeShape, ToyJudge
from rglcd.toy.scene import ATTRIBUTES, VALUES, Scene, all_scenes, caption
from rglcd.toy.training import Curve, cosine, descend, draw_indices


@dataclass(frozen=True)
class JudgeSettings:
    """How the judge is trained; a change of any of these trains it again.

    It sees `num_pictures` drawn pictures and as many that a codec made from noisy latents, with up to `latent_noise`.
    """

    seed: int = 41
    num_pictures: int = 10368
    latent_noise: float = 0.3
    shape: JudgeShape = field(default_factory=JudgeShape)
    batch: int = 64
    learning_rate: float = 2e-3
    num_steps: int = 4500
    pixel_noise: float = 0.04
    label_smoothing: float = 0.02


def train_judge(pixels: Tensor, scenes: Sequence[Scene], settings: JudgeSettings) -> tuple[ToyJudge, Curve]:
    """Train on `pixels` (N, 3, 32, 32) in [0, 1], where picture i shows `scenes[i % len(scenes)]`.

    Half of a batch meets its own caption, a quarter one with a single attribute changed, a quarter any caption.
    """
    torch.manual_seed(settings.seed)
    draws = torch.Generator().manual_seed(settings.seed + 1)
    judge = ToyJudge(sorted({word for scene in all_scenes() for word in caption(scene).split()}), settings.shape)
    words = judge.encode_text([caption(scene) for scene in all_scenes()])
    attributes = torch.tensor([scene.indices for scene in scenes])
    optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.learning_rate, weight_decay=1e-2, fused=True)
    curve = Curve("judge")
    for step in range(settings.num_steps):
        cosine(optimizer, settings.learning_rate, step=step, total=settings.num_steps)
        chosen = draw_indices(len(pixels), settings.batch, draws)
        truth = attributes[chosen % len(scenes)]
        claimed = _claims(truth, draws)
        target = (claimed == truth).all(1).float()
        noise = torch.randn(pixels[chosen].shape, generator=draws)
        strength = settings.pixel_noise * torch.rand(len(chosen), 1, 1, 1, generator=draws)
        logits = judge((pixels[chosen] + strength * noise).clamp(0, 1), words[_scene_numbers(claimed)])
        smooth = target * (1 - 2 * settings.label_smoothing) + settings.label_smoothing
        loss = F.binary_cross_entropy_with_logits(logits, smooth)
        descend(loss, optimizer)
        curve.add("matching", step, total=settings.num_steps, loss=loss, right=((logits > 0) == (target > 0.5)).float().mean())
    return judge.eval(), curve


def _claims(truth: Tensor, draws: torch.Generator) -> Tensor:
    """Attribute values to claim: the picture's own (1/2), its own but for one value (1/4), or another picture's (1/4)."""
    counts = torch.tensor([len(values) for values in VALUES])
    steps = 1 + (torch.rand(truth.shape, generator=draws) * (counts - 1)).long()
    single = F.one_hot(draw_indices(len(ATTRIBUTES), len(truth), draws), len(ATTRIBUTES))
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
