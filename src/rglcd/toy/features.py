"""The toy's feature network for Fréchet distances: a small ResNet trained to classify a picture's attributes.

Saved as a transformers ResNetModel; its pooled output is the feature vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from rglcd.toy.expert import normalise
from rglcd.toy.scene import VALUES, Scene
from rglcd.toy.training import Curve, cosine, descend, draw_indices


@dataclass(frozen=True)
class FeatureSettings:
    """How the feature network is trained; a change of any of these trains it again."""

    seed: int = 51
    num_pictures: int = 8192
    widths: tuple[int, ...] = (24, 32, 64)
    batch: int = 64
    learning_rate: float = 2e-3
    num_steps: int = 3000
    pixel_noise: float = 0.03


def train_features(pixels: Tensor, scenes: Sequence[Scene], settings: FeatureSettings) -> tuple[ResNetModel, nn.Linear, Curve]:
    """Train on `pixels` (N, 3, 32, 32) in [0, 1], where picture i shows `scenes[i % len(scenes)]`.

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
    network, classifier = ResNetModel(config), nn.Linear(settings.widths[-1], sum(map(len, VALUES)))
    trained = nn.ModuleList([network, classifier]).train()
    attributes = torch.tensor([scene.indices for scene in scenes])
    optimizer = torch.optim.AdamW(trained.parameters(), lr=settings.learning_rate, weight_decay=1e-2, fused=True)
    curve = Curve("features")
    for step in range(settings.num_steps):
        cosine(optimizer, settings.learning_rate, step=step, total=settings.num_steps)
        chosen = draw_indices(len(pixels), settings.batch, draws)
        noise = torch.randn(pixels[chosen].shape, generator=draws)
        seen = (pixels[chosen] + settings.pixel_noise * noise).clamp(0, 1)
        truth = attributes[chosen % len(scenes)]
        logits = classify(network, classifier, seen)
        loss = torch.stack([F.cross_entropy(part, truth[:, column]) for column, part in enumerate(logits)]).sum()
        descend(loss, optimizer)
        right = torch.stack([part.argmax(1) == truth[:, column] for column, part in enumerate(logits)]).all(0)
        curve.add("classification", step, total=settings.num_steps, loss=loss, right=right.float().mean())
    return network.eval(), classifier.eval(), curve


def classify(network: ResNetModel, classifier: nn.Linear, pixels: Tensor) -> tuple[Tensor, ...]:
    """Logits for each attribute's values from `pixels` (B, 3, 32, 32) in [0, 1]."""
    pooled = network(normalise(pixels)).pooler_output.flatten(1)
    logits: Tensor = classifier(pooled)
    return torch.split(logits, [len(values) for values in VALUES], dim=1)
