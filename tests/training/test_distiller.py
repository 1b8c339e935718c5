"""The training step, on real networks of tiny size with random weights."""

import shutil
from pathlib import Path

import pytest
import torch

from rglcd.config import FrozenProxy, LatentReward, NoReward, OnlineProxy, PixelReward, SharedPrediction
from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.latents.order import sample_indices
from rglcd.models.codec import Moments
from rglcd.stages.assembly import make_distiller
from rglcd.training.operations import flops_of_step
from tests.tiny_line import run, tiny_config
from tests.training.conftest import materials_of


def distiller_of(line: Path, reward: object, *overrides: str):
    return make_distiller(materials_of(line, tiny_config(*overrides)), reward, num_steps=4, world=materials_of(line, tiny_config()).world)


def weights(distiller) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in distiller.student.unet.parameters()])


def test_an_untrained_student_is_the_teachers_conditional_prediction_at_any_omega(line: Path) -> None:
    distiller = distiller_of(line, NoReward())
    z_t = torch.randn(2, *distiller.cache.latent_shape)
    t, cond = torch.tensor([19, 999]), distiller.text_encoder.encode(distiller.text_encoder.tokenise(["a", "b"]))
    expected = distiller.teacher(z_t, t, cond)
    for omega in (torch.tensor([1.0, 5.0]), torch.tensor([9.0, 15.0])):
        torch.testing.assert_close(distiller.student(z_t, t, omega, cond).x0, expected.x0)


def test_a_step_moves_the_student_its_average_less_and_never_the_teacher(line: Path) -> None:
    distiller = distiller_of(line, NoReward())
    before, teacher = weights(distiller), [p.clone() for p in distiller.teacher.unet.parameters()]
    distiller.step(0)
    moved = weights(distiller) - before
    target = torch.cat([p.flatten() for p in distiller.target.unet.parameters()]) - before
    assert moved.abs().max() > 0
    torch.testing.assert_close(target, 0.05 * moved, rtol=1e-3, atol=1e-7)
    assert all(torch.equal(old, new) for old, new in zip(teacher, distiller.teacher.unet.parameters(), strict=True))


@pytest.mark.parametrize("reward", [PixelReward(weight=5000.0), LatentReward(weight=5000.0, tuning=FrozenProxy())], ids=["pixel", "latent"])
def test_a_heavily_weighted_reward_ends_higher_than_under_plain_distillation(line: Path, reward: object) -> None:
    @torch.no_grad()
    def mean_reward(distiller) -> float:
        """Of what the student predicts from the noise of the steps that it was trained on."""
        guidance = distiller_of(line, reward).reward_guidance
        batches = [distiller._batch(step) for step in range(8)]
        return sum(
            float(guidance.gradient(distiller._terms(batch, distiller._grid(0)).z0_hat, batch.texts).scores.mean()) for batch in batches
        )

    plain, guided = distiller_of(line, NoReward()), distiller_of(line, reward)
    for step in range(8):
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
    first, second = (distiller.reward_guidance.gradient(batch.z0, batch.texts) for distiller in (one, four))
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.gradient, second.gradient, rtol=1e-4, atol=1e-7)


def test_the_online_proxy_learns_and_the_frozen_one_stays(line: Path) -> None:
    online, frozen = (distiller_of(line, LatentReward(tuning=tuning)) for tuning in (OnlineProxy(learning_rate=1e-3), FrozenProxy()))
    start = [parameter.clone() for parameter in frozen.reward_guidance.model.parameters()]
    figures = [distiller.step(0) for distiller in (online, frozen)]
    assert "lrm_loss" in figures[0]
    assert "lrm_loss" not in figures[1]
    assert any(not torch.equal(old, new) for old, new in zip(start, online.reward_guidance.model.parameters(), strict=True))
    assert all(torch.equal(old, new) for old, new in zip(start, frozen.reward_guidance.model.parameters(), strict=True))


def test_the_online_proxys_loss_falls_on_the_same_candidates(line: Path) -> None:
    distiller = distiller_of(line, LatentReward(tuning=OnlineProxy(learning_rate=3e-3)))
    guidance, batch = distiller.reward_guidance, distiller._batch(0)
    candidates = (batch.z0, torch.randn_like(batch.z0), torch.zeros_like(batch.z0))
    losses = [float(guidance.learn(0, candidates, batch.texts)["lrm_loss"]) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_caption_dropout_drops_captions(line: Path) -> None:
    kept = distiller_of(line, NoReward())._batch(0).cond
    dropped = distiller_of(line, NoReward(), "distillation.caption_dropout=1.0")
    embeddings = dropped._batch(0).cond.embeddings
    assert torch.equal(embeddings, dropped._null.embeddings.expand_as(kept.embeddings))
    assert not torch.equal(kept.embeddings, embeddings)


def test_the_count_of_operations_is_reproducible_and_higher_with_a_reward(line: Path) -> None:
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


def test_a_stop_gradient_target_is_the_student_and_keeps_an_average_only_when_asked(line: Path) -> None:
    alone = distiller_of(line, NoReward(), "distillation.target={kind: stop_gradient}")
    averaged = distiller_of(line, NoReward(), "distillation.target={kind: stop_gradient, evaluation_decay: 0.5}")
    ema = distiller_of(line, NoReward())
    assert alone.target.unet is alone.student.unet is alone.evaluated.unet
    assert averaged.target.unet is averaged.student.unet is not averaged.evaluated.unet
    assert ema.target.unet is ema.evaluated.unet is not ema.student.unet
    before = weights(alone)
    for distiller in (alone, averaged, ema):
        distiller.step(0)
    # At step 0 average and student are one; so is then their gradient.
    assert torch.equal(weights(alone), weights(averaged))
    assert torch.equal(weights(alone), weights(ema))
    average = torch.cat([parameter.flatten() for parameter in averaged.evaluated.trainable_parameters.values()])
    torch.testing.assert_close(average - before, (weights(averaged) - before) / 2, rtol=1e-3, atol=1e-7)
    assert "average" not in alone.parts()


def test_consistency_training_never_calls_the_teacher(line: Path) -> None:
    distiller = distiller_of(line, NoReward(), "distillation.neighbour=data")
    calls = []
    distiller.teacher.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    before = weights(distiller)
    distiller.step(0)
    assert calls == []
    assert not torch.equal(before, weights(distiller))


def test_dropout_masks_are_shared_by_student_and_target_and_differ_by_sample(line: Path) -> None:
    distiller = distiller_of(line, NoReward(), "distillation.dropout=0.3")
    batch, t = distiller._batch(0), torch.full((4,), 499)

    def output(network) -> torch.Tensor:
        with torch.no_grad():
            return network(
                batch.z0[:1].expand(4, -1, -1, -1), t, batch.draws.omega[:1].expand(4), Condition.joined([batch.cond[:1]] * 4)
            ).x0

    distiller._drop(0)
    first, twin = output(distiller.student), output(distiller.target)
    assert torch.equal(first, twin)
    assert all(not torch.equal(first[0], other) for other in first[1:])
    distiller._drop(1)
    assert not torch.equal(first, output(distiller.student))
    assert not any("dropout" in name for name in distiller.student.unet.state_dict())


class Seen:
    """Reward guidance that takes down the predictions it was shown."""

    def __init__(self, guidance) -> None:
        self.predictions: list[torch.Tensor] = []
        self._guidance = guidance

    def __getattr__(self, name: str):
        return getattr(self._guidance, name)

    def gradient(self, z0_hat: torch.Tensor, texts):
        self.predictions.append(z0_hat)
        return self._guidance.gradient(z0_hat, texts)


def test_the_reward_sees_the_shared_predictions_or_its_own(line: Path) -> None:
    def passes(prediction: str) -> tuple[list[int], torch.Tensor]:
        distiller = distiller_of(line, tiny_config(f"reward={{kind: pixel, prediction: {prediction}}}").reward)
        distiller.reward_guidance, calls = Seen(distiller.reward_guidance), []
        distiller.student.unet.register_forward_pre_hook(lambda _, arguments: calls.append(arguments[1].tolist()))
        figures = distiller.step(0)
        assert 0 <= float(figures["reward_share"]) <= 1
        return calls, distiller.reward_guidance.predictions[0]

    (shared,), whole = passes("{kind: shared}")
    (halved,), half = passes("{kind: shared, every: 2}")
    assert shared == halved
    assert torch.equal(half, whole[::2])
    (distilled, rewarded), own = passes("{kind: own, every: 2, timesteps: {kind: uniform, span: [0.9, 1.0]}}")
    assert distilled == shared
    assert len(own) == len(rewarded) == 2
    assert min(rewarded) >= 899


def test_ranks_must_share_the_rewarded_samples_too(line: Path) -> None:
    with pytest.raises(InputError, match="every 3 does not divide the 4 samples"):
        distiller_of(line, PixelReward(prediction=SharedPrediction(every=3)))


def test_recomputed_activations_give_the_same_gradient(line: Path) -> None:
    kept, recomputed = (distiller_of(line, PixelReward(activations=choice)) for choice in ("kept", "recomputed"))
    batch = kept._batch(0)
    first, second = (distiller.reward_guidance.gradient(batch.z0, batch.texts) for distiller in (kept, recomputed))
    assert torch.equal(first.gradient, second.gradient)
    assert flops_of_step(recomputed) > flops_of_step(kept)


def test_the_reward_is_decoded_in_the_precision_that_was_asked_for(line: Path) -> None:
    distiller = distiller_of(line, PixelReward(precision="bfloat16"))
    assert distiller.codec.vae.dtype == distiller.reward_guidance.expert.model.dtype == torch.bfloat16
    assert torch.isfinite(distiller.step(0)["reward"])
    assert distiller.student.unet.dtype == torch.float32


@pytest.mark.parametrize("reward", [PixelReward(), LatentReward()], ids=["pixel", "latent"])
def test_the_experts_text_tower_does_not_take_part_in_training(line: Path, reward: object) -> None:
    expert = distiller_of(line, reward).reward_guidance.expert
    assert not any(name.startswith("text_") for name, _ in expert.model.named_parameters())


def test_a_cached_score_of_the_real_image_saves_its_decode_and_keeps_the_labels(line: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(line, tmp_path / "line"))
    run(own, tiny_config("caching.scores=[expert]"), "cache")
    decodes: dict[str, int] = {}
    labels = {}
    for name, root in (("asked", line), ("cached", own)):
        distiller = distiller_of(root, tiny_config().reward)
        batch = distiller._batch(0)
        distiller.codec.vae.decoder.register_forward_pre_hook(
            lambda _, arguments, name=name: decodes.update({name: decodes.get(name, 0) + len(arguments[0])})
        )
        # The mean of the posterior, which is what was scored; a step's own sample of it is another draw's.
        indices = sample_indices(distiller.recipe.seed, len(distiller.cache), start=0, count=4)
        cached = distiller.cache.batch(indices)
        real = distiller.codec.latents(Moments(cached.mean, cached.logvar), torch.zeros_like(cached.mean))
        candidates = (torch.full_like(real, 0.1), torch.zeros_like(real), real)
        labels[name] = float(distiller.reward_guidance.learn(0, candidates, batch.texts, batch.scores)["lrm_loss"])
    assert decodes == {"asked": 12, "cached": 8}
    # The cache keeps moments in float16, and the score of those in float32.
    assert labels["cached"] == pytest.approx(labels["asked"], rel=1e-3)
    with pytest.raises(InputError, match=r"add it to caching\.scorers"):
        tiny_config("caching.scores=[expert]", "caching.scorers=[]", "reward={kind: none}")
