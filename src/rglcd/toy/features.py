"""The toy's feature network for Fréchet distances: a small ResNet trained to classify what a picture shows, and whether it is neat.

Saved as a transformers ResNetModel; its pooled output is the feature vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from rglcd.toy.flaws import Flaw
from rglcd.toy.preprocessing import normalise
from rglcd.toy.resuming import Loop
from rglcd.toy.scene import VALUES
from rglcd.toy.training import Curve, cosine, descend, draw_indices
from rglcd.toy.web import Row

_CHOICES = (*(len(values) for values in VALUES), 2)


@dataclass(frozen=True)
class FeatureSettings:
    """How the feature network is trained; a change of any of these trains it again."""

    seed: int = 51
    num_pictures: int = 8192
    widths: tuple[int, ...] = (24, 32, 64)
    batch: int = 64
    learning_rate: float = 2e-3
    num_steps: int = 2000
    pixel_noise: float = 0.03


def train_features(
    pixels: Tensor, rows: Sequence[Row], settings: FeatureSettings, *, states: Path | None = None
) -> tuple[ResNetModel, nn.Linear, Curve]:
    """Train on the rows' pictures (N, 3, 32, 32) in [0, 1].

    Returns:
        The network, the classifier on its pooled output, and the curve.
    """
    torch.manual_seed(settings.seed)
    draws = torch.Generator().manual_seed(settings.seed + 1)
    config = ResNetConfig(
        embedding_size=settings.widths[0],
        hidden_sizes=list(settings.widths),
        depths=[1] * len(settings.widths),
        layer_type="basic",
        downsample_in_first_stage=False,
    )
    network, classifier = ResNetModel(config), nn.Linear(settings.widths[-1], sum(_CHOICES))
    trained = nn.ModuleList([network, classifier]).train()
    truth = true_values(rows)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=settings.learning_rate, weight_decay=1e-2, fused=True)
    curve = Curve("features")
    for step in Loop(trained, optimizer, draws, curve).steps(settings.num_steps, states and states / "features.pt"):
        cosine(optimizer, settings.learning_rate, step=step, total=settings.num_steps)
        chosen = draw_indices(len(pixels), settings.batch, draws)
        noise = torch.randn(pixels[chosen].shape, generator=draws)
        logits = classify(network, classifier, (pixels[chosen] + settings.pixel_noise * noise).clamp(0, 1))
        targets = truth[chosen].unbind(1)
        loss = torch.stack([F.cross_entropy(part, target) for part, target in zip(logits, targets, strict=True)]).sum()
        descend(loss, optimizer)
        right = torch.stack([part.argmax(1) == target for part, target in zip(logits, targets, strict=True)]).all(0)
        curve.add("classification", step, total=settings.num_steps, loss=loss, right=right.float().mean())
    return network.eval(), classifier.eval(), curve


def true_values(rows: Sequence[Row]) -> Tensor:
    """What the pictures show by number, and 1 where they are neat: int64 (N, 5)."""
    return torch.tensor([(*row.shown.indices, int(row.flaws == Flaw.NONE)) for row in rows])


def classify(network: ResNetModel, classifier: nn.Linear, pixels: Tensor) -> tuple[Tensor, ...]:
    """Logits for each attribute's values and for neatness from `pixels` (B, 3, 32, 32) in [0, 1]."""
    logits: Tensor = classifier(network(normalise(pixels)).pooler_output.flatten(1))
    return torch.split(logits, list(_CHOICES), dim=1)
