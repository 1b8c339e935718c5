"""The pictures that the toy's scorers learn from: drawn, decoded by the codec, and drawn by the teacher in few steps and many."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from rglcd.toy.codec import coded, distorted
from rglcd.toy.flaws import Flaw
from rglcd.toy.raters import traits
from rglcd.toy.scene import all_scenes, caption
from rglcd.toy.scorers import TrainingPictures
from rglcd.toy.teacher import drawings
from rglcd.toy.web import Mixture, draw_pixels, web_rows

_MATCHED: Final = Mixture(flawed=45, wrong=0)
_COMPARED: Final = Mixture(flawed=50, wrong=0)
_REAL_SEEDS: Final = 1_000_000  # after the first seed: the real pictures among the compared ones


@dataclass(frozen=True)
class DrawingSettings:
    """Which of the teacher's drawings raters compare: every caption once for each guidance and number of steps; and real ones."""

    seed: int
    few_steps: tuple[int, ...] = (1, 2, 4, 8)
    few_guidances: tuple[float, ...] = (2.0, 3.5)
    many_steps: tuple[int, ...] = (50,)
    many_guidances: tuple[float, ...] = (3.0,)
    num_real: int = 3


def make_training_pictures(
    teacher: StableDiffusionPipeline,
    settings: DrawingSettings,
    *,
    num_pictures: int,
    latent_noise: float,
    first_seed: int,
    kept: Path | None = None,
) -> TrainingPictures:
    """Twice `num_pictures` that match their captions, half of them decoded; and what raters compare. Kept in the file `kept`."""
    if kept is not None and kept.is_file():
        tensors = load_file(kept)
        return TrainingPictures(tensors["matched"], tensors["neat"], tensors["compared"], tensors["traits"])
    scenes = all_scenes()
    assert num_pictures % len(scenes) == 0, "both halves begin with the first scene"
    shown = [scenes[number % len(scenes)] for number in range(2 * num_pictures)]
    rows = web_rows(shown, range(first_seed, first_seed + len(shown)), _MATCHED)
    pixels = draw_pixels(rows, first_seed=first_seed)
    drawn, source = torch.split(pixels, num_pictures)
    matched = torch.cat([drawn, distorted(teacher.vae, source, latent_noise=latent_noise, seed=settings.seed)])
    captions = [caption(scene) for scene in scenes]
    few = drawings(teacher, captions, steps=settings.few_steps, guidances=settings.few_guidances, seed=settings.seed + 1)
    many = drawings(teacher, captions, steps=settings.many_steps, guidances=settings.many_guidances, seed=settings.seed + 500)
    first_real = first_seed + _REAL_SEEDS
    real_shown = list(scenes) * settings.num_real
    real_rows = web_rows(real_shown, range(first_real, first_real + len(real_shown)), _COMPARED)
    real = coded(teacher.vae, draw_pixels(real_rows, first_seed=first_real))
    compared = torch.cat([few, many, real])
    seen = traits(compared, captions * (len(compared) // len(captions)))
    pictures = TrainingPictures(matched, torch.tensor([row.flaws == Flaw.NONE for row in rows]), compared, seen)
    if kept is not None:
        tensors = {"matched": pictures.matched, "neat": pictures.neat, "compared": pictures.compared, "traits": pictures.traits}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, kept)
    return pictures
