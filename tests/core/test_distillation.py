"""One step of distillation: what carries a gradient, what the reward adds to it, and that chunking changes nothing."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from rglcd.core.condition import Condition
from rglcd.core.consistency import BoundaryScalings
from rglcd.core.distances import huber
from rglcd.core.distillation import Draws, LcdTerms, gradient_share, lcd_terms, reward_gradient, rg_lcd_loss, solved_neighbour, surrogate
from rglcd.core.guidance import guided_teacher
from rglcd.core.prediction import Prediction, PredictionType, convert
from rglcd.core.schedule import NoiseSchedule
from rglcd.core.solver import DDIMSolver

BATCH = 5


class TinyNetwork(nn.Module):
    """A float64 eps-network of a few parameters, with and without the guidance scale."""

    def __init__(self, schedule: NoiseSchedule, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.schedule = schedule
        self.mix = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        self.gains = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
        self.batches: list[int] = []

    def forward(self, z_t: Tensor, t: Tensor, omega: Tensor, cond: Condition) -> Prediction:
        self.batches.append(len(z_t))
        shift = self.gains[0] * t / 1000 + self.gains[1] * omega / 10 + self.gains[2] * cond.embeddings.mean(dim=(1, 2))
        output = torch.einsum("dc,bchw->bdhw", self.mix, z_t).tanh() + shift[:, None, None, None]
        return convert(output, z_t, t, schedule=self.schedule, kind=PredictionType.EPSILON)

    def teach(self, z_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        return self(z_t, t, torch.zeros(len(t), dtype=torch.float64), cond)


class Setting:
    """Three networks and one batch."""

    def __init__(self, schedule: NoiseSchedule, rng: torch.Generator) -> None:
        self.schedule = schedule
        self.student, self.target, self.teacher = (TinyNetwork(schedule, seed) for seed in (1, 2, 3))
        self.z0, eps = torch.randn(2, BATCH, 3, 4, 4, generator=rng, dtype=torch.float64)
        self.cond = Condition(torch.randn(BATCH, 2, 6, generator=rng, dtype=torch.float64))
        self.uncond = Condition(torch.randn(1, 2, 6, generator=rng, dtype=torch.float64))
        self.draws = Draws(torch.tensor([0, 7, 20, 33, 49]), torch.linspace(5, 15, BATCH, dtype=torch.float64), eps)
        self.direction = torch.randn(BATCH, 3, 4, 4, generator=rng, dtype=torch.float64)

    def terms(self, rows: slice = slice(None)) -> LcdTerms:
        draws, cond, solver = self.draws[rows], self.cond[rows], DDIMSolver(self.schedule)
        return lcd_terms(
            student=self.student,
            target=self.target,
            neighbour=solved_neighbour(
                partial(guided_teacher, self.teacher.teach), omega=draws.omega, cond=cond, uncond=self.uncond, solver=solver
            ),
            z0=self.z0[rows],
            cond=cond,
            draws=draws,
            solver=solver,
            scalings=BoundaryScalings(),
            distance=huber,
        )

    def score(self, z0: Tensor, rows: slice) -> Tensor:
        """A reward that differs by row, as captions make it, and is not linear in the latents."""
        return (self.direction[rows] * z0.tanh()).sum(dim=(1, 2, 3)).sin()

    def gradient(self, loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, list(self.student.parameters()), retain_graph=True)
        return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.fixture
def setting(schedule: NoiseSchedule, rng: torch.Generator) -> Setting:
    return Setting(schedule, rng)


def test_lcd_gives_gradient_to_the_student_only_and_runs_each_network_once(setting: Setting) -> None:
    terms = setting.terms()
    terms.distance.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in setting.student.parameters())
    assert all(p.grad is None for network in (setting.target, setting.teacher) for p in network.parameters())
    assert not terms.target.requires_grad
    assert (setting.student.batches, setting.target.batches, setting.teacher.batches) == ([BATCH], [BATCH], [2 * BATCH])
    assert terms.t.tolist() == [19, 159, 419, 679, 999]
    assert terms.s.tolist() == [0, 139, 399, 659, 979]


def test_target_at_the_last_grid_step_is_the_solvers_result(setting: Setting) -> None:
    # f(z, 0) = z: the boundary, where distillation gets its truth from.
    before = setting.terms().target
    with torch.no_grad():
        setting.target.gains.add_(1.0)
    after = setting.terms().target
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)
    assert (before[1:] - after[1:]).abs().amin(dim=(1, 2, 3)).min() > 1e-6


def test_lcd_terms_of_a_split_batch_equal_those_of_the_whole_batch(setting: Setting) -> None:
    whole, parts = setting.terms(), [setting.terms(slice(0, 2)), setting.terms(slice(2, BATCH))]
    torch.testing.assert_close(whole.z0_hat, torch.cat([part.z0_hat for part in parts]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.distance, torch.cat([part.distance for part in parts]), rtol=1e-12, atol=1e-12)


def test_rg_gradient_is_lcd_gradient_minus_weight_times_reward_gradient(setting: Setting) -> None:
    terms, weight = setting.terms(), 2.5
    reward = setting.score(terms.z0_hat, slice(0, BATCH))
    whole = setting.gradient(rg_lcd_loss(terms.distance, reward, weight))
    expected = setting.gradient(terms.distance.mean()) - weight * setting.gradient(reward.mean())
    torch.testing.assert_close(whole, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(setting.gradient(rg_lcd_loss(terms.distance, reward, 0.0)), setting.gradient(terms.distance.mean()))


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 8])
def test_chunked_reward_gradient_equals_the_gradient_in_one_pass(setting: Setting, chunk_size: int) -> None:
    terms = setting.terms()
    reward = setting.score(terms.z0_hat, slice(0, BATCH))
    scores, gradient = reward_gradient(terms.z0_hat, setting.score, chunk_size=chunk_size)
    torch.testing.assert_close(scores, reward.detach(), rtol=1e-13, atol=1e-13)
    (expected,) = torch.autograd.grad(reward.sum(), terms.z0_hat, retain_graph=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-13)
    one_pass = setting.gradient(rg_lcd_loss(terms.distance, reward, 2.5))
    chunked = setting.gradient(rg_lcd_loss(terms.distance, surrogate(terms.z0_hat, gradient), 2.5))
    torch.testing.assert_close(chunked, one_pass, rtol=1e-11, atol=1e-12)


def test_reward_gradient_keeps_activations_of_one_chunk_and_none_of_the_student(setting: Setting) -> None:
    terms, sizes = setting.terms(), []

    def score(z0: Tensor, rows: slice) -> Tensor:
        sizes.append((len(z0), rows.start, rows.stop))
        assert z0.is_leaf
        return setting.score(z0, rows)

    scores, gradient = reward_gradient(terms.z0_hat, score, chunk_size=2)
    assert sizes == [(2, 0, 2), (2, 2, 4), (1, 4, 5)]
    assert not scores.requires_grad
    assert not gradient.requires_grad


def test_rg_lcd_loss_refuses_a_reward_that_is_not_one_number_per_sample() -> None:
    # It would broadcast to a wrong mean without a word.
    with pytest.raises(AssertionError):
        rg_lcd_loss(torch.zeros(4), torch.zeros(4, 1), 1.0)


def test_gradient_share_is_finite_per_sample_even_for_zero_gradients() -> None:
    of, against = torch.tensor([3.0, 0.0, 2.0, 0.0]), torch.tensor([1.0, 5.0, 0.0, 0.0])
    share = gradient_share(of.view(4, 1, 1, 1).expand(4, 2, 3, 3), against.view(4, 1, 1, 1).expand(4, 2, 3, 3))
    torch.testing.assert_close(share, torch.tensor([0.75, 0.0, 1.0, 0.0]))
