"""The toy's reward model (the expert): a small transformers CLIPModel, differentiable, and possible to over-optimise.

Trained as HPSv2 was (Wu et al. 2023): first contrastively (Radford et al. 2021), then on which of two pictures of a caption is the
better one. People annotated HPSv2's pairs; the checker annotates these, of pictures that the teacher drew in too few steps.
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
    whose gradient guides a student must know what decoded pictures look like. The pairs' worse pictures are the teacher's: every
    caption drawn once for each of `drawing_guidances` and of `drawing_steps`.
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
    num_other_captions: int = 96
    learning_rate: float = 1.5e-3
    num_steps: int = 5000
    pixel_noise: float = 0.03
    drawing_guidances: tuple[float, ...] = (2.0, 2.5, 3.0, 3.5, 4.0)
    drawing_steps: tuple[int, ...] = (1, 1, 2, 2)
    num_pairs: int = 32
    preference_rate: float = 5e-4
    num_preference_steps: int = 2000


@dataclass(frozen=True)
class Corpus:
    """What the expert sees of N scenes: picture i shows scene i % N, in [0, 1].

    `pixels` (P, 3, H, W) are good; of `drawings` (D, 3, H, W) the checker finds `right` (D,) attributes right.
    """

    pixels: Tensor
    drawings: Tensor
    right: Tensor


def train_expert(tokenizer: CLIPTokenizer, corpus: Corpus, scenes: Sequence[Scene], settings: ExpertSettings) -> tuple[CLIPModel, Curve]:
    """Train on pictures of `scenes`, whose captions are all there are."""
    torch.manual_seed(settings.seed)
    course = _Course(_build(tokenizer, settings), tokenize(tokenizer, [caption(scene) for scene in scenes]), corpus, settings)
    for act, rate, steps in (
        ("contrast", settings.learning_rate, settings.num_steps),
        ("preference", settings.preference_rate, settings.num_preference_steps),
    ):
        optimizer = torch.optim.AdamW(course.model.parameters(), lr=rate, weight_decay=1e-2, fused=True)
        for step in range(steps):
            cosine(optimizer, rate, step=step, total=steps)
            loss, figures = course.contrast() if act == "contrast" else course.contrast_and_preference()
            descend(loss, optimizer)
            course.curve.add(act, step, total=steps, loss=loss, **figures)
    return course.model.eval(), course.curve


class _Course:
    """The losses of both phases, and the random draws that they share."""

    def __init__(self, model: CLIPModel, ids: Tensor, corpus: Corpus, settings: ExpertSettings) -> None:
        self.model = model
        self.curve = Curve("expert")
        self._ids = ids
        self._corpus = corpus
        self._settings = settings
        self._draws = torch.Generator().manual_seed(settings.seed + 1)
        self._flawed = (corpus.right < len(ATTRIBUTES)).nonzero().squeeze(1)

    def contrast(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Each picture against its own caption, the batch's, and some others: captions one attribute away are among them."""
        chosen = draw_indices(len(self._corpus.pixels), self._settings.batch, self._draws)
        shown = chosen % len(self._ids)
        logits, pool = self._logits(self._corpus.pixels[chosen], shown)
        own = torch.searchsorted(pool, shown)
        return F.cross_entropy(logits, own), {"right": (logits.argmax(1) == own).float().mean()}

    def contrast_and_preference(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrast goes on; beside it a flawed drawing against a better picture of its caption (Bradley and Terry 1952)."""
        loss, figures = self.contrast()
        worse = self._flawed[draw_indices(len(self._flawed), self._settings.num_pairs, self._draws)]
        shown = worse % len(self._ids)
        logits, pool = self._logits(torch.cat([self._corpus.drawings[worse], self._better(worse)]), shown)
        scores = logits.gather(1, torch.searchsorted(pool, shown.repeat(2))[:, None]).view(2, -1)
        return loss + F.softplus(scores[0] - scores[1]).mean(), figures | {"preferred": (scores[1] > scores[0]).float().mean()}

    def _better(self, worse: Tensor) -> Tensor:
        """A random drawing of the same caption if it has more attributes right, otherwise a good picture that the codec decoded."""
        corpus, num_scenes = self._corpus, len(self._ids)
        rival = draw_indices(len(corpus.drawings) // num_scenes, len(worse), self._draws) * num_scenes + worse % num_scenes
        # The second half, decoded by the codec: against a drawn picture, traces of decoding alone would mark the worse one.
        half = len(corpus.pixels) // 2
        good = half + draw_indices(half // num_scenes, len(worse), self._draws) * num_scenes + worse % num_scenes
        wins = corpus.right[rival] > corpus.right[worse]
        return torch.where(wins.view(-1, 1, 1, 1), corpus.drawings[rival], corpus.pixels[good])

    def _logits(self, pixels: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosines (B, K) of noisy pictures and K captions, and the captions' numbers in ascending order."""
        others = draw_indices(len(self._ids), self._settings.num_other_captions, self._draws)
        pool = torch.cat([shown, others]).unique()
        noise = self._settings.pixel_noise * torch.randn(pixels.shape, generator=self._draws)
        seen = normalise((pixels + noise).clamp(0, 1))
        return self.model(input_ids=self._ids[pool], pixel_values=seen).logits_per_image, pool


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
