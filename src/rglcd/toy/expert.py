"""The toy's expert: a transformers CLIPModel in miniature, a reward with useful gradients that can be fooled.

Trained contrastively, each picture against the batch's captions and against captions with one attribute changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from rglcd.toy.scene import ATTRIBUTES, CANVAS, VALUES, Scene, caption
from rglcd.toy.teacher import tokenize
from rglcd.toy.tokenizer import MAX_TOKENS
from rglcd.toy.training import Curve, cosine, descend, draw_indices

PREPROCESSOR: Final = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": CANVAS},
    "do_center_crop": True,
    "crop_size": {"height": CANVAS, "width": CANVAS},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_convert_rgb": True,
    "resample": 3,
}


@dataclass(frozen=True)
class ExpertSettings:
    """How the expert is trained; a change of any of these trains it again.

    It sees `num_pictures` drawn pictures and as many that the codec made from noisy latents, with up to `latent_noise`: a reward
    whose gradient guides a student must know what decoded pictures look like.
    """

    seed: int = 31
    num_pictures: int = 10368
    latent_noise: float = 0.15
    patch: int = 4
    width: int = 64
    num_layers: int = 3
    num_heads: int = 4
    projection: int = 48
    batch: int = 64
    learning_rate: float = 1.5e-3
    num_steps: int = 3000
    pixel_noise: float = 0.03


def train_expert(tokenizer: CLIPTokenizer, pixels: Tensor, scenes: Sequence[Scene], settings: ExpertSettings) -> tuple[CLIPModel, Curve]:
    """Train on `pixels` (N, 3, 32, 32) in [0, 1], where picture i shows `scenes[i % len(scenes)]`.

    Every picture is set against every scene's caption at once (Radford et al. 2021, with the whole population as the
    batch's texts), so all captions one attribute away are among its negatives.
    """
    torch.manual_seed(settings.seed)
    draws = torch.Generator().manual_seed(settings.seed + 1)
    ids = tokenize(tokenizer, [caption(scene) for scene in scenes])
    model = _build(tokenizer, settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=1e-2, fused=True)
    curve = Curve("expert")
    for step in range(settings.num_steps):
        cosine(optimizer, settings.learning_rate, step=step, total=settings.num_steps)
        chosen = draw_indices(len(pixels), settings.batch, draws)
        noise = torch.randn(pixels[chosen].shape, generator=draws)
        seen = (pixels[chosen] + settings.pixel_noise * noise).clamp(0, 1)
        logits = model(input_ids=ids, pixel_values=normalise(seen)).logits_per_image
        target = chosen % len(scenes)
        loss = F.cross_entropy(logits, target)
        descend(loss, optimizer)
        curve.add("contrastive", step, total=settings.num_steps, loss=loss, right=(logits.argmax(1) == target).float().mean())
    return model.eval(), curve


def normalise(pixels: Tensor) -> Tensor:
    """From [0, 1] to the [-1, 1] that `PREPROCESSOR` says the vision tower sees."""
    return (pixels - 0.5) / 0.5


@torch.no_grad()
def hard_negative_accuracy(model: CLIPModel, tokenizer: CLIPTokenizer, pixels: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """How often a picture's caption scores above one with one attribute changed, by attribute; chance is a half."""
    images = F.normalize(model.visual_projection(model.vision_model(normalise(pixels)).pooler_output), dim=-1)
    truth = _score(model, tokenizer, images, [caption(scene) for scene in scenes])
    accuracies = {}
    for attribute, values in zip(ATTRIBUTES, VALUES, strict=True):
        margins = [
            truth - _score(model, tokenizer, images, [caption(changed(scene, attribute, turn)) for scene in scenes])
            for turn in range(1, len(values))
        ]
        accuracies[attribute] = (torch.stack(margins) > 0).float().mean().item()
    return accuracies


def changed(scene: Scene, attribute: str, turn: int) -> Scene:
    """The scene with one attribute moved on by `turn` places in its list."""
    values = VALUES[ATTRIBUTES.index(attribute)]
    place = values.index(getattr(scene, attribute))
    return replace(scene, **{attribute: values[(place + turn) % len(values)]})


def _score(model: CLIPModel, tokenizer: CLIPTokenizer, images: Tensor, captions: Sequence[str]) -> Tensor:
    text = model.text_model(tokenize(tokenizer, captions)).pooler_output
    return (images * F.normalize(model.text_projection(text), dim=-1)).sum(1)


def _build(tokenizer: CLIPTokenizer, settings: ExpertSettings) -> CLIPModel:
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
    vision = tower | {"num_hidden_layers": settings.num_layers, "image_size": CANVAS, "patch_size": settings.patch}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.projection))
