"""Theorems on data that are N(mean, std^2): teacher, probability-flow ODE and consistency function are closed-form.

With one std for all captions, guidance only moves the mean: the guided teacher of captions with means m_c and m_u is
the exact teacher of N(m_c + omega (m_c - m_u), std^2). So the whole guided objective has a known minimiser, too.
The caption's embedding (B,1,1) in `cond` holds its mean.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.consistency import Boundary, BoundaryScalings, FlowBoundary, consistency_output
from rglcd.core.distances import squared_l2
from rglcd.core.distillation import Draws, LcdTerms, lcd_terms, noised_neighbour, solved_neighbour
from rglcd.core.guidance import guided_teacher
from rglcd.core.prediction import Prediction
from rglcd.core.sampling import lcm_timesteps, multistep_sample
from rglcd.core.schedule import NoiseSchedule, per_sample
from rglcd.core.solver import DDIMSolver

FLOW = NoiseSchedule.rectified_flow(shift=3.0)


@dataclass(frozen=True)
class GaussianWorld:
    schedule: NoiseSchedule
    std: float = 0.5
    uncond_mean: float = -0.3

    def spread(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha_t, sigma_t, and the standard deviation of z_t."""
        alpha, sigma = self.schedule.at(t, like)
        return alpha, sigma, (alpha**2 * self.std**2 + sigma**2).sqrt()

    @property
    def scalings(self) -> Boundary:
        return FlowBoundary() if self.schedule.is_flow else BoundaryScalings()

    def teacher(self, z_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        alpha, sigma, z_std = self.spread(t, z_t)
        mean = per_sample(cond.embeddings[:, 0, 0], z_t)
        x0 = mean + alpha * self.std**2 / z_std**2 * (z_t - alpha * mean)
        return Prediction(x0=x0, eps=(z_t - alpha * x0) / sigma)

    def flow(self, z_t: Tensor, t: Tensor, s: Tensor, mean: Tensor) -> Tensor:
        """The exact solution of the ODE from t to s: the standardised z does not move."""
        (alpha_t, _, std_t), (alpha_s, _, std_s) = self.spread(t, z_t), self.spread(s, z_t)
        # A flow's point mass has no spread at all at time 0, where nothing is left to solve.
        ratio = torch.where(std_t > 0, std_s / std_t, 1.0)
        return alpha_s * mean + ratio * (z_t - alpha_t * mean)

    def guided_mean(self, omega: Tensor, cond: Condition) -> Tensor:
        own = cond.embeddings[:, 0, 0]
        return per_sample(own + omega * (own - self.uncond_mean), torch.empty(0, 1, 1, 1, dtype=own.dtype))

    def student(self, z_t: Tensor, t: Tensor, omega: Tensor, cond: Condition) -> Prediction:
        """The exact consistency function, down to time 0, as the network behind the boundary scalings must say it."""
        exact = self.flow(z_t, t, torch.zeros_like(t), self.guided_mean(omega, cond))
        c_skip, c_out = self.scalings.at(t, z_t)
        x0 = torch.where(c_out > 0, (exact - c_skip * z_t) / c_out, z_t)
        return Prediction(x0=x0, eps=z_t)

    def exact_f(self, mean: float):
        return lambda z_t, t: self.flow(z_t, t, torch.zeros_like(t), torch.tensor(mean, dtype=z_t.dtype))


@pytest.fixture(params=["diffusion", "flow"])
def world(schedule: NoiseSchedule, request: pytest.FixtureRequest) -> GaussianWorld:
    return GaussianWorld(FLOW if request.param == "flow" else schedule)


def lcd_of_exact_student(world: GaussianWorld, num_steps: int, rng: torch.Generator) -> LcdTerms:
    """One sample per grid step, the exact consistency function as student and as target."""
    means = torch.randn(num_steps, 1, 1, generator=rng, dtype=torch.float64)
    omega, uncond = torch.linspace(0, 4, num_steps, dtype=torch.float64), torch.full((1, 1, 1), world.uncond_mean, dtype=torch.float64)
    solver = DDIMSolver(world.schedule, num_steps)
    eps = torch.randn(num_steps, 2, 3, 3, generator=rng, dtype=torch.float64)
    noise = torch.randn(num_steps, 2, 3, 3, generator=rng, dtype=torch.float64)
    return lcd_terms(
        student=world.student,
        target=world.student,
        neighbour=solved_neighbour(
            partial(guided_teacher, world.teacher), omega=omega, cond=Condition(means), uncond=Condition(uncond), solver=solver
        ),
        z0=means[:, :, :, None] + world.std * noise,
        cond=Condition(means),
        draws=Draws(index=torch.arange(num_steps), omega=omega, eps=eps),
        solver=solver,
        scalings=world.scalings,
        distance=squared_l2,
    )


def ddim_error(world: GaussianWorld, num_steps: int) -> float:
    """Largest error at time 0 of the whole DDIM path from T - 1, over a spread of starts."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    mean = torch.full((len(z), 1, 1), 0.7, dtype=torch.float64)
    solver = DDIMSolver(world.schedule, num_steps)
    exact = world.flow(z, torch.full((len(z),), 999), torch.zeros(len(z), dtype=torch.long), mean[..., None])
    for index in reversed(range(num_steps)):
        pair = solver.pair(torch.full((len(z),), index))
        z = solver.step(world.teacher(z, pair.t, Condition(mean)), pair.s)
    return (z - exact).abs().max().item()


def test_ddim_error_halves_when_the_step_halves(world: GaussianWorld) -> None:
    errors = [ddim_error(world, num_steps) for num_steps in (25, 50, 100, 200)]
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


def test_guided_gaussian_teacher_equals_the_teacher_of_the_guided_mean(world: GaussianWorld, rng: torch.Generator) -> None:
    z_t = torch.randn(4, 2, 3, 3, generator=rng, dtype=torch.float64)
    t, omega = torch.tensor([19, 259, 599, 999]), torch.tensor([0.0, 1.0, 7.5, 15.0], dtype=torch.float64)
    cond = Condition(torch.randn(4, 1, 1, generator=rng, dtype=torch.float64))
    uncond = Condition(torch.full((1, 1, 1), world.uncond_mean, dtype=torch.float64))
    guided = guided_teacher(world.teacher, z_t, t, omega=omega, cond=cond, uncond=uncond)
    expected = world.teacher(z_t, t, Condition(world.guided_mean(omega, cond)[:, 0]))
    torch.testing.assert_close(guided.x0, expected.x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(guided.eps, expected.eps, rtol=1e-12, atol=1e-12)


def test_lcd_loss_of_the_exact_consistency_function_is_the_solvers_local_error(world: GaussianWorld, rng: torch.Generator) -> None:
    # DDIM is a first-order method: its local error is quadratic in the step, and the squared distance quartic.
    losses = [lcd_of_exact_student(world, num_steps, rng).distance.mean().item() for num_steps in (25, 50, 100, 200, 400)]
    assert losses[-1] < 1e-6 < losses[0]
    for coarse, fine in pairwise(losses):
        assert 8 < coarse / fine < 32


def test_lcd_loss_of_the_exact_consistency_function_is_zero_where_ddim_is_exact(world: GaussianWorld, rng: torch.Generator) -> None:
    # On a point mass the ODE's paths are straight in sigma / alpha, and one DDIM step follows a straight path exactly.
    terms = lcd_of_exact_student(replace(world, std=0.0), 50, rng)
    assert terms.distance.max().item() < 1e-22


def test_lcd_loss_of_a_wrong_student_is_positive(world: GaussianWorld, rng: torch.Generator) -> None:
    # The same point mass, its mean misjudged: the theorem above would notice.
    point = replace(world, std=0.0)
    cond, uncond = (Condition(torch.full((1, 1, 1), mean, dtype=torch.float64)) for mean in (1.0, -0.3))
    solver, omega = DDIMSolver(point.schedule), torch.ones(1, dtype=torch.float64)
    terms = lcd_terms(
        student=lambda z_t, t, omega, c: point.student(z_t, t, omega, Condition(c.embeddings * 1.1)),
        target=point.student,
        neighbour=solved_neighbour(partial(guided_teacher, point.teacher), omega=omega, cond=cond, uncond=uncond, solver=solver),
        z0=torch.ones(1, 2, 3, 3, dtype=torch.float64),
        cond=cond,
        draws=Draws(torch.tensor([30]), omega, torch.randn(1, 2, 3, 3, generator=rng, dtype=torch.float64)),
        solver=solver,
        scalings=world.scalings,
        distance=squared_l2,
    )
    assert terms.distance.item() > 1e-3


def test_exact_consistency_function_is_constant_along_the_ode(world: GaussianWorld) -> None:
    z_t = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(-1, 1, 1, 1)
    t, s = torch.full((5,), 799), torch.full((5,), 59)
    omega, cond = torch.full((5,), 2.0, dtype=torch.float64), Condition(torch.full((5, 1, 1), 0.4, dtype=torch.float64))
    z_s = world.flow(z_t, t, s, world.guided_mean(omega, cond))
    from_t = consistency_output(world.student(z_t, t, omega, cond), z_t, t, scalings=world.scalings)
    from_s = consistency_output(world.student(z_s, s, omega, cond), z_s, s, scalings=world.scalings)
    torch.testing.assert_close(from_t, from_s, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_multistep_sampling_of_a_standard_normal_is_exact_for_any_number_of_steps(schedule: NoiseSchedule, num_steps: int) -> None:
    # N(0, 1) is the one distribution that the forward process leaves alone, so that pure noise is a true z_t; the exact
    # function is then the identity and each re-noising keeps the variance at one.
    rng = torch.Generator().manual_seed(num_steps)
    noises = list(torch.randn(num_steps, 200_000, 1, 1, 1, generator=rng, dtype=torch.float64))
    f = GaussianWorld(schedule, std=1.0).exact_f(mean=0.0)
    z0 = multistep_sample(f, noises, lcm_timesteps(num_steps), schedule=schedule)
    # Five standard errors of 200,000 draws.
    assert abs(z0.mean().item()) < 5 / 200_000**0.5
    assert abs(z0.var().item() - 1) < 5 * (2 / 200_000) ** 0.5


def test_multistep_sampling_recovers_the_datas_mean_and_variance(schedule: NoiseSchedule) -> None:
    world = GaussianWorld(schedule)
    # One step starts from N(0, 1) where the marginal at T - 1 still knows the mean (alpha = 0.068); more steps forget
    # that start. At time 0 the data is N(alpha_0 m, alpha_0^2 s^2 + sigma_0^2).
    rng, mean, num_samples = torch.Generator().manual_seed(7), 1.5, 200_000
    noises = list(torch.randn(8, num_samples, 1, 1, 1, generator=rng, dtype=torch.float64))
    alpha, _, std = (x.item() for x in world.spread(torch.zeros(1, dtype=torch.long), noises[0]))
    biases = {}
    for num_steps in (1, 4, 8):
        z0 = multistep_sample(world.exact_f(mean), noises[:num_steps], lcm_timesteps(num_steps), schedule=world.schedule)
        biases[num_steps] = abs(z0.mean().item() - alpha * mean)
        assert abs(z0.std().item() / std - 1) < 0.01
    assert biases[1] == pytest.approx(one_step_bias(world, mean), abs=5 * std / num_samples**0.5)
    assert biases[4] < 0.1 * biases[1]
    assert biases[8] < 5 * std / num_samples**0.5


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_multistep_sampling_of_a_flow_is_exact_for_any_data_and_number_of_steps(num_steps: int) -> None:
    # A flow starts from noise alone and ends at the data itself, so nothing is lost at either end.
    rng, world, mean, num_samples = torch.Generator().manual_seed(num_steps), GaussianWorld(FLOW), 1.5, 200_000
    noises = list(torch.randn(num_steps, num_samples, 1, 1, 1, generator=rng, dtype=torch.float64))
    z0 = multistep_sample(world.exact_f(mean), noises, lcm_timesteps(num_steps), schedule=FLOW)
    assert abs(z0.mean().item() - mean) < 5 * world.std / num_samples**0.5
    assert abs(z0.std().item() / world.std - 1) < 5 / (2 * num_samples) ** 0.5


def one_step_bias(world: GaussianWorld, mean: float) -> float:
    """What one step from zero-mean noise loses of the mean: (std_0 / std_t) alpha_t m at t = T - 1."""
    like = torch.empty(0, 1, 1, 1, dtype=torch.float64)
    _, _, std_0 = world.spread(torch.tensor([0]), like)
    alpha_t, _, std_t = world.spread(torch.tensor([999]), like)
    return (std_0 / std_t * alpha_t * mean).item()


def test_noised_neighbour_equals_the_ode_solution_for_single_point_data(world: GaussianWorld, rng: torch.Generator) -> None:
    # One sample is then all there is: the straight path through it and its noise is the ODE's own, without guidance.
    point, mean = replace(world, std=0.0), 0.6
    z0, eps = torch.full((3, 2, 3, 3), mean, dtype=torch.float64), torch.randn(3, 2, 3, 3, generator=rng, dtype=torch.float64)
    solver = DDIMSolver(point.schedule)
    pair, cond = solver.pair(torch.tensor([3, 20, 49])), Condition(torch.full((3, 1, 1), mean, dtype=torch.float64))
    z_t = point.schedule.diffuse(z0, eps, pair.t)
    solved = solved_neighbour(
        partial(guided_teacher, point.teacher), omega=torch.zeros(3, dtype=torch.float64), cond=cond, uncond=cond, solver=solver
    )
    torch.testing.assert_close(noised_neighbour(z0, eps, point.schedule)(z_t, pair), solved(z_t, pair), rtol=1e-12, atol=1e-12)


def test_noised_neighbour_is_on_the_ode_path_on_average(world: GaussianWorld, rng: torch.Generator) -> None:
    # The expected direction of (z0, eps) given z_t is the ODE's: consistency models, Lemma 1. So at one z_t, the mean over
    # its posterior of the noised neighbour is the solver's single step, which is linear in (x0, eps).
    num_samples, mean, t = 400_000, 0.6, torch.tensor([599])
    z_t = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64)
    alpha, sigma, std_t = world.spread(t, z_t)
    posterior_std = (world.std * sigma / std_t).item()
    exact = world.teacher(z_t, t, Condition(torch.full((1, 1, 1), mean, dtype=torch.float64)))
    z0 = exact.x0 + posterior_std * torch.randn(num_samples, 1, 1, 1, generator=rng, dtype=torch.float64)
    eps = (z_t - alpha * z0) / sigma
    solver = DDIMSolver(world.schedule)
    pair = solver.pair(torch.full((num_samples,), 29))
    assert pair.t[0] == t
    drawn = noised_neighbour(z0, eps, world.schedule)(z_t.expand_as(z0), pair)
    expected = solver.step(exact, pair.s[:1])
    torch.testing.assert_close(drawn.mean(dim=0, keepdim=True), expected, rtol=0, atol=5 * drawn.std().item() / num_samples**0.5)
