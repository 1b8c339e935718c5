"""One step of ours against the paper's equations, written straight down: no chunk, no batching of the teacher, no module of ours.

Everything is float64, so that what differs would differ by more than rounding.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import LatentConsistencyModelPipeline
from torch import Tensor
from torch.nn.functional import normalize

from rglcd.core.prediction import PredictionType
from rglcd.training.distributed import World
from rglcd.training.draws import draw_prediction
from tests.tiny_line import tiny_config
from tests.training.conftest import materials_of
from tests.training.double_precision import StillDistiller, double_distiller

ALONE = World(0, 1, torch.device("cpu"))
STEP = 1

# Stable Diffusion's schedule; alpha^2 + sigma^2 = 1 (latent diffusion, arXiv 2112.10752).
ABAR = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
ALPHA, SIGMA = ABAR.sqrt(), (1 - ABAR).sqrt()


def at(table: Tensor, t: Tensor) -> Tensor:
    return table[t].view(-1, 1, 1, 1)


def x0_and_eps(u: Tensor, z: Tensor, t: Tensor, kind: PredictionType) -> tuple[Tensor, Tensor]:
    a, s = at(ALPHA, t), at(SIGMA, t)
    if kind == "epsilon":
        return (z - s * u) / a, u
    if kind == "sample":
        return u, (z - a * u) / s
    return a * z - s * u, a * u + s * z


def f(unet, z: Tensor, t: Tensor, omega: Tensor, cond: Tensor, kind: PredictionType) -> Tensor:
    embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, omega, 256, torch.float64)
    u = unet(z, t, encoder_hidden_states=cond, timestep_cond=embedding).sample
    scaled = (10.0 * t.double()).view(-1, 1, 1, 1)
    return 0.25 / (scaled**2 + 0.25) * z + scaled / (scaled**2 + 0.25).sqrt() * x0_and_eps(u, z, t, kind)[0]


def elementwise_huber(x: Tensor, y: Tensor) -> Tensor:
    return (((x - y) ** 2 + 1e-6).sqrt() - 1e-3).mean(dim=(1, 2, 3))


def squares(x: Tensor, y: Tensor) -> Tensor:
    return ((x - y) ** 2).mean(dim=(1, 2, 3))


def of_norm(shape: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: shape(((x - y) ** 2).sum(dim=(1, 2, 3)), 0.00054 * math.sqrt(x[0].numel()))


DISTANCES = {
    "huber": elementwise_huber,
    "l2": squares,
    "pseudo_huber": of_norm(lambda q, c: (q + c**2).sqrt() - c),
    "cauchy": of_norm(lambda q, c: torch.log(1 + q / (2 * c**2))),
}


def grid_weights(config, t: Tensor, s: Tensor) -> Tensor:
    """What each sample counts for: 1, or 1 / (sigma_t - sigma_s) over its mean under the distribution of the timesteps."""
    if config.distillation.weighting == "even":
        return torch.ones(len(t), dtype=torch.float64)
    levels = [float(SIGMA[time] / ALPHA[time]) for time in (0, *range(19, 1000, 20))]
    gaps = [high - low for low, high in pairwise(levels)]
    chances = [0.02] * 50
    chosen = config.distillation.timesteps
    if chosen.kind == "lognormal":

        def cdf(level: float) -> float:
            return math.erf((math.log(level) - chosen.p_mean) / (math.sqrt(2) * chosen.p_std))

        mass = [cdf(high) - cdf(low) for low, high in pairwise(levels)]
        chances = [(1 - chosen.uniform_share) * m / sum(mass) + chosen.uniform_share / 50 for m in mass]
    mean = sum(chance / gap for chance, gap in zip(chances, gaps, strict=True))
    return 1 / ((SIGMA / ALPHA)[t] - (SIGMA / ALPHA)[s]) / mean


def reward_of(distiller, config, z0: Tensor, texts: dict[str, Tensor]) -> Tensor:
    if config.reward.kind == "latent":
        model, expert = distiller.reward_guidance.model, distiller.reward_guidance.expert
        cosine = (normalize(model.embed_latents(z0), dim=-1) * normalize(model.embed_text(texts["expert"]), dim=-1)).sum(dim=-1)
        return model.log_scale.exp() * cosine / expert.logit_scale
    vae, clip = distiller.codec.vae, distiller.reward_guidance.expert.model
    image = (vae.decode(z0 / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    features = clip.visual_projection(clip.vision_model(pixel_values=(image - 0.5) / 0.25).pooler_output)
    return (features / features.norm(dim=-1, keepdim=True) * texts["expert"]).sum(dim=-1)


def by_the_book(distiller, config, kind: PredictionType) -> tuple[Tensor, Tensor]:
    """Loss and gradient of RG-LCD for the batch of training step STEP."""
    batch, chosen = distiller._batch(STEP), config.distillation
    student, teacher, z0, cond = distiller.student.unet, distiller.teacher.unet, batch.z0, batch.cond.embeddings
    omega, eps = batch.draws.omega, batch.draws.eps
    t = 20 * (batch.draws.index + 1) - 1
    s = (t - 20).clamp(min=0)
    z_t = at(ALPHA, t) * z0 + at(SIGMA, t) * eps
    with torch.no_grad():
        null = distiller._null.embeddings.expand_as(cond)
        (x0_c, eps_c), (x0_u, eps_u) = (x0_and_eps(teacher(z_t, t, encoder_hidden_states=c).sample, z_t, t, kind) for c in (cond, null))
        w = omega.view(-1, 1, 1, 1)
        z_s = at(ALPHA, s) * (x0_c + w * (x0_c - x0_u)) + at(SIGMA, s) * (eps_c + w * (eps_c - eps_u))
        if chosen.neighbour == "data":
            z_s = at(ALPHA, s) * z0 + at(SIGMA, s) * eps
        network = student if chosen.target.kind == "stop_gradient" else distiller.target.unet
        target = f(network, z_s, s, omega, cond, kind)
    z0_hat = f(student, z_t, t, omega, cond, kind)
    loss = (grid_weights(config, t, s) * DISTANCES[chosen.distance.kind](z0_hat, target)).mean()
    if config.reward.kind != "none":
        rows, shown = slice(None, None, config.reward.prediction.every), z0_hat
        if config.reward.prediction.kind == "own":
            draws = draw_prediction(0, STEP, batch_size=len(z0), rows=slice(0, len(z0)), latent_shape=tuple(z0.shape[1:]))
            own_t = 20 * ((draws.grid.double() * 50).long() + 1) - 1
            shown = f(student, at(ALPHA, own_t) * z0 + at(SIGMA, own_t) * draws.eps, own_t, omega, cond, kind)
        reward = reward_of(distiller, config, shown, batch.texts)
        loss = loss - config.reward.weight * reward[rows].mean()
    gradient = torch.autograd.grad(loss, list(student.parameters()))
    return loss.detach(), torch.cat([part.flatten() for part in gradient])


ICT = (
    "distillation.target={kind: stop_gradient}",
    "distillation.distance={kind: pseudo_huber}",
    "distillation.timesteps={kind: lognormal, uniform_share: 0.5}",
    "distillation.weighting=inverse_gap",
    "distillation.dropout=0.2",
)
PLAIN = ("reward={kind: none}",)
SETTINGS = {
    "the paper's": PLAIN,
    "l2": (*PLAIN, "distillation.distance={kind: l2}"),
    "cauchy": (*PLAIN, "distillation.distance={kind: cauchy}"),
    "weighted": (*PLAIN, "distillation.weighting=inverse_gap"),
    "iCT": (*PLAIN, *ICT),
    "iCT without a teacher": (*PLAIN, *ICT, "distillation.neighbour=data"),
    "captions dropped": (*PLAIN, "distillation.caption_dropout=0.5"),
    "pixel": ("reward={kind: pixel, weight: 2.0, chunk_size: 3}",),
    "pixel, recomputed": ("reward={kind: pixel, weight: 2.0, chunk_size: 1, activations: recomputed}",),
    "pixel, some": ("reward={kind: pixel, weight: 2.0, chunk_size: 1, prediction: {kind: shared, every: 2}}",),
    "pixel, its own": ("reward={kind: pixel, weight: 2.0, prediction: {kind: own, every: 2}}",),
    "latent": ("reward={kind: latent, weight: 2.0, tuning: {kind: frozen}}",),
    "latent and iCT": ("reward={kind: latent, weight: 2.0, tuning: {kind: frozen}, prediction: {kind: own}}", *ICT[:-1]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_are_those_of_the_equations(line: Path, name: str) -> None:
    check(line, SETTINGS[name], PredictionType.V)


@pytest.mark.parametrize("kind", [PredictionType.EPSILON, PredictionType.SAMPLE])
def test_loss_and_gradient_are_exact_for_every_prediction_type(line: Path, kind: PredictionType) -> None:
    check(line, SETTINGS["pixel"], kind)


def check(line: Path, overrides: tuple[str, ...], kind: PredictionType) -> None:
    config = tiny_config(*overrides)
    distiller = double_distiller(StillDistiller, materials_of(line, config), config, world=ALONE, prediction=kind)
    figures = distiller.step(STEP)
    loss, gradient = by_the_book(distiller, config, kind)
    ours = figures["distance"] - getattr(config.reward, "weight", 0.0) * figures.get("reward", torch.zeros(()))
    assert gradient.norm() > 1e-3
    assert abs(ours - loss) <= 1e-10 * abs(loss)
    assert (distiller.gradient - gradient).norm() <= 1e-10 * gradient.norm()
