"""The training step, on real networks of tiny size with random weights."""

from pathlib import Path

import pytest
import torch

from rglcd.config import LatentReward, NoReward, PixelReward
from rglcd.core.consistency import consistency_output
from rglcd.stages.distill import _distiller
from rglcd.training.distiller import flops_of_step
from tests.tiny_line import tiny_config
from tests.training.conftest import materials_of


def distiller_of(line: Path, reward: object, *overrides: str):
    return _distiller(materials_of(line, tiny_config(*overrides)), reward, num_steps=4, world=materials_of(line, tiny_config()).world)


def weights(distiller) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in distiller.student.unet.parameters()])


def test_at_step_zero_the_student_is_the_teachers_conditional_half_whatever_omega(line: Path) -> None:
    distiller = distiller_of(line, NoReward())
    z_t = torch.randn(2, *distiller.cache.latent_shape)
    t, cond = torch.tensor([19, 999]), distiller.text_encoder.encode(distiller.text_encoder.tokenise(["a", "b"]))
    expected = distiller.teacher(z_t, t, cond)
    for omega in (torch.tensor([1.0, 5.0]), torch.tensor([9.0, 15.0])):
        torch.testing.assert_close(distiller.student(z_t, t, omega, cond).x0, expected.x0)


def test_after_a_step_the_student_has_moved_the_target_less_and_the_teacher_not_at_all(line: Path) -> None:
    distiller = distiller_of(line, NoReward())
    before, teacher = weights(distiller), [p.clone() for p in distiller.teacher.unet.parameters()]
    distiller.step(0)
    moved = weights(distiller) - before
    target = torch.cat([p.flatten() for p in distiller.target.unet.parameters()]) - before
    assert moved.abs().max() > 0
    torch.testing.assert_close(target, 0.05 * moved, rtol=1e-3, atol=1e-7)
    assert all(torch.equal(old, new) for old, new in zip(teacher, distiller.teacher.unet.parameters(), strict=True))


@pytest.mark.parametrize("reward", [PixelReward(weight=50.0), LatentReward(weight=50.0, tuning="frozen")], ids=["pixel", "latent"])
def test_a_heavy_reward_rises_where_plain_distillation_leaves_it(line: Path, reward: object) -> None:
    def mean_reward(distiller) -> float:
        guide = distiller_of(line, reward).guide
        batch = distiller._batch(0)
        prediction = distiller.student(batch.z0, torch.full((len(batch.z0),), 499), batch.draws.omega, batch.cond)
        z0 = consistency_output(prediction, batch.z0, torch.full((len(batch.z0),), 499), scalings=distiller.recipe.scalings)
        return float(guide.guide(z0, batch.texts).scores.mean())

    plain, guided = distiller_of(line, NoReward()), distiller_of(line, reward)
    for step in range(4):
        plain.step(step)
        guided.step(step)
    assert mean_reward(guided) > mean_reward(plain)


def test_a_weightless_reward_changes_nothing(line: Path) -> None:
    plain, guided = distiller_of(line, NoReward()), distiller_of(line, PixelReward(weight=0.0))
    for step in range(2):
        plain.step(step)
        guided.step(step)
    assert torch.equal(weights(plain), weights(guided))


def test_the_pixel_rewards_chunks_change_nothing_but_memory(line: Path) -> None:
    one, four = (distiller_of(line, PixelReward(chunk_size=size)) for size in (1, 4))
    batch = one._batch(0)
    first, second = (distiller.guide.guide(batch.z0, batch.texts) for distiller in (one, four))
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.gradient, second.gradient, rtol=1e-4, atol=1e-7)


def test_the_online_proxy_learns_and_the_frozen_one_stays(line: Path) -> None:
    online, frozen = (distiller_of(line, LatentReward(tuning=tuning, learning_rate=1e-3)) for tuning in ("online", "frozen"))
    start = [parameter.clone() for parameter in frozen.guide.model.parameters()]
    figures = [distiller.step(0) for distiller in (online, frozen)]
    assert "lrm_loss" in figures[0]
    assert "lrm_loss" not in figures[1]
    assert any(not torch.equal(old, new) for old, new in zip(start, online.guide.model.parameters(), strict=True))
    assert all(torch.equal(old, new) for old, new in zip(start, frozen.guide.model.parameters(), strict=True))


def test_the_online_proxys_loss_falls_on_the_same_candidates(line: Path) -> None:
    guide, batch = (distiller := distiller_of(line, LatentReward(learning_rate=3e-3))).guide, distiller._batch(0)
    candidates = (batch.z0, torch.randn_like(batch.z0), torch.zeros_like(batch.z0))
    losses = [float(guide.learn(candidates, batch.texts)["lrm_loss"]) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_caption_dropout_drops_captions(line: Path) -> None:
    kept = distiller_of(line, NoReward())._batch(0).cond
    dropped = distiller_of(line, NoReward(), "distillation.caption_dropout=1.0")
    embeddings = dropped._batch(0).cond.embeddings
    assert torch.equal(embeddings, dropped._null.embeddings.expand_as(kept.embeddings))
    assert not torch.equal(kept.embeddings, embeddings)


def test_a_reward_costs_operations_and_the_count_is_the_same_each_time(line: Path) -> None:
    plain = flops_of_step(distiller_of(line, NoReward()))
    assert flops_of_step(distiller_of(line, NoReward())) == plain
    pixel, latent = (flops_of_step(distiller_of(line, reward)) for reward in (PixelReward(), LatentReward()))
    assert pixel > plain
    assert latent > plain


def test_bfloat16_trains_float32_weights(line: Path) -> None:
    distiller = distiller_of(line, NoReward(), "distillation.precision=bfloat16")
    figures = distiller.step(0)
    assert torch.isfinite(figures["distance"])
    assert {parameter.dtype for parameter in distiller.student.unet.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in distiller.teacher.unet.parameters()} == {torch.bfloat16}
