"""Guidance is an extrapolation between two predictions of the same z_t; its scale is embedded as diffusers does."""

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from rglcd.core.condition import Condition
from rglcd.core.guidance import guidance_embedding, guide, guided_teacher
from rglcd.core.prediction import Prediction, PredictionType, convert
from rglcd.core.schedule import NoiseSchedule


def predictions(schedule: NoiseSchedule, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, Prediction, Prediction]:
    z_t, first, second = torch.randn(3, 3, 2, 4, 4, generator=rng, dtype=torch.float64)
    t = torch.tensor([19, 499, 999])
    cond, uncond = (convert(out, z_t, t, schedule=schedule, kind=PredictionType.EPSILON) for out in (first, second))
    return z_t, t, cond, uncond


def test_guidance_with_omega_zero_is_unguided_and_minus_one_unconditional(schedule: NoiseSchedule, rng: torch.Generator) -> None:
    _, _, cond, uncond = predictions(schedule, rng)
    torch.testing.assert_close(guide(cond, uncond, torch.zeros(3)).x0, cond.x0, rtol=0, atol=0)
    torch.testing.assert_close(guide(cond, uncond, -torch.ones(3)).eps, uncond.eps, rtol=1e-12, atol=1e-12)


def test_guidance_is_affine_in_omega(schedule: NoiseSchedule, rng: torch.Generator) -> None:
    _, _, cond, uncond = predictions(schedule, rng)
    low, high = torch.tensor([5.0, 6.0, 0.0]), torch.tensor([15.0, 8.0, 3.0])
    middle, ends = guide(cond, uncond, (low + high) / 2), [guide(cond, uncond, omega) for omega in (low, high)]
    torch.testing.assert_close(middle.x0, (ends[0].x0 + ends[1].x0) / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(middle.eps, (ends[0].eps + ends[1].eps) / 2, rtol=1e-12, atol=1e-12)


def test_guided_x0_and_eps_still_satisfy_z_t(schedule: NoiseSchedule, rng: torch.Generator) -> None:
    z_t, t, cond, uncond = predictions(schedule, rng)
    guided = guide(cond, uncond, torch.tensor([5.0, 7.5, 15.0]))
    torch.testing.assert_close(schedule.diffuse(guided.x0, guided.eps, t), z_t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("uncond_rows", [1, 3])
def test_guided_teacher_calls_the_teacher_once_and_keeps_rows_separate(uncond_rows: int, rng: torch.Generator) -> None:
    z_t, omega = torch.randn(3, 2, 4, 4, generator=rng), torch.tensor([5.0, 7.5, 15.0])
    cond = Condition(torch.randn(3, 5, 6, generator=rng))
    uncond = Condition(torch.randn(1, 5, 6, generator=rng).expand(uncond_rows, 5, 6))
    batches = []

    def teacher(z: torch.Tensor, t: torch.Tensor, c: Condition) -> Prediction:
        batches.append(len(z))
        shift = (c.embeddings.mean(dim=(1, 2)) + t)[:, None, None, None]
        return Prediction(x0=z + shift, eps=z * shift)

    t = torch.tensor([19, 499, 999])
    together = guided_teacher(teacher, z_t, t, omega=omega, cond=cond, uncond=uncond)
    assert batches == [6]
    apart = guide(teacher(z_t, t, cond), teacher(z_t, t, cond.with_caption_of(uncond)), omega)
    torch.testing.assert_close(together.x0, apart.x0)
    torch.testing.assert_close(together.eps, apart.eps)


@pytest.mark.parametrize("dim", [256, 512, 8])
def test_guidance_embedding_equals_diffusers(dim: int, rng: torch.Generator) -> None:
    omega = 20 * torch.rand(64, generator=rng)
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, omega, embedding_dim=dim)  # type: ignore[arg-type]
    torch.testing.assert_close(guidance_embedding(omega, dim=dim), theirs, rtol=0, atol=1e-6)


def test_guidance_embedding_in_float64_differs_only_by_rounding_of_phases() -> None:
    omega = torch.linspace(0, 15, 31)
    # A phase of 15,000 rad has float32 steps of 1e-3.
    torch.testing.assert_close(guidance_embedding(omega.double()).float(), guidance_embedding(omega), rtol=0, atol=2e-3)


@pytest.mark.parametrize("dim", [2, 255])
def test_guidance_embedding_refuses_an_odd_or_too_small_dim(dim: int) -> None:
    with pytest.raises(ValueError, match="even dim"):
        guidance_embedding(torch.ones(1), dim=dim)
