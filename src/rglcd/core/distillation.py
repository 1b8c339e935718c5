"""Latent consistency distillation (LCD) and its reward guided form: loss = LCD - reward_weight * reward.

Shapes: z0, z_t, z_s, eps (B,C,H,W)    t, s, index, omega (B,)    cond B rows    uncond 1 row or B    b <= B rewarded samples
"""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.consistency import Boundary, GuidedFn, StudentFn, consistency_output
from rglcd.core.distances import Distance
from rglcd.core.schedule import NoiseSchedule
from rglcd.core.solver import DDIMSolver, TimestepPair


@dataclass(frozen=True)
class Draws:
    """All the randomness of one step: grid `index` (B,), guidance scale `omega` (B,), noise `eps` (B,C,H,W)."""

    index: Tensor
    omega: Tensor
    eps: Tensor

    def __getitem__(self, rows: slice) -> Self:
        """The draws of some samples, so that a batch keeps its randomness however many ranks share it."""
        return type(self)(index=self.index[rows], omega=self.omega[rows], eps=self.eps[rows])


@dataclass(frozen=True)
class LcdTerms:
    """One step's student prediction `z0_hat` (with gradient), its `target`, their `distance` (B,), and t > s (B,)."""

    z0_hat: Tensor
    target: Tensor
    distance: Tensor
    t: Tensor
    s: Tensor


class NeighbourFn(Protocol):
    """z_s (B,C,H,W): the point at `pair.s` on the path through `z_t` at `pair.t`. Called without gradient."""

    def __call__(self, z_t: Tensor, pair: TimestepPair, /) -> Tensor: ...


class ScoreFn(Protocol):
    """Rewards (b,) of the clean latents `z0` (b,C,H,W) of the batch's samples `rows`, each by itself."""

    def __call__(self, z0: Tensor, rows: slice, /) -> Tensor: ...


def solved_neighbour(guided: GuidedFn, *, omega: Tensor, cond: Condition, uncond: Condition, solver: DDIMSolver) -> NeighbourFn:
    """Consistency distillation: one step of `solver` down the `guided` teacher's ODE."""

    def neighbour(z_t: Tensor, pair: TimestepPair, /) -> Tensor:
        return solver.step(guided(z_t, pair.t, omega=omega, cond=cond, uncond=uncond), pair.s)

    return neighbour


def noised_neighbour(z0: Tensor, eps: Tensor, schedule: NoiseSchedule) -> NeighbourFn:
    """Consistency training, without a teacher: the same `eps` on the same `z0`, an unbiased estimate of the unguided path."""
    # Consistency models Sec. 5, Theorem 2
    return lambda z_t, pair: schedule.diffuse(z0, eps, pair.s)


def one_step_prediction(student: StudentFn, z_t: Tensor, t: Tensor, *, omega: Tensor, cond: Condition, scalings: Boundary) -> Tensor:
    """f(z_t, omega, c, t) (B,C,H,W): the clean latents that `student` predicts from `z_t`."""
    return consistency_output(student(z_t, t, omega, cond), z_t, t, scalings=scalings)


def lcd_terms(
    *,
    student: StudentFn,
    target: StudentFn,
    neighbour: NeighbourFn,
    z0: Tensor,
    cond: Condition,
    draws: Draws,
    solver: DDIMSolver,
    scalings: Boundary,
    distance: Distance,
) -> LcdTerms:
    """The consistency distillation terms of a batch: LCM Algorithm 1, RG-LCD Algorithm 3 without the reward.

    Only the pass of `student` carries a gradient. `target` is its moving average, or itself as in iCT. The passes
    without gradient run first, so that the teacher's workspace is free again when the student keeps its activations.
    """
    pair = solver.pair(draws.index)
    z_t = solver.schedule.diffuse(z0, draws.eps, pair.t)
    with torch.no_grad():
        aim = one_step_prediction(target, neighbour(z_t, pair), pair.s, omega=draws.omega, cond=cond, scalings=scalings)
    z0_hat = one_step_prediction(student, z_t, pair.t, omega=draws.omega, cond=cond, scalings=scalings)
    # d(f(z_{t_{n+k}}, omega, c, t_{n+k}), f^-(z_hat_{t_n}, omega, c, t_n)): LCM Sec. 4.3
    return LcdTerms(z0_hat=z0_hat, target=aim, distance=distance(z0_hat, aim), t=pair.t, s=pair.s)


def rg_lcd_loss(distance: Tensor, reward: Tensor, weight: float) -> Tensor:
    """The scalar to minimise, from `distance` (B,) and `reward` (b,) of all samples or some; `weight` is the paper's beta."""
    assert distance.ndim == reward.ndim == 1, "one distance per sample, one reward per rewarded sample"
    # L_RG-LCD = L_LCD - beta E[R(D(f(z_{t_{n+k}}, omega, c, t_{n+k})), c)]: RG-LCD Algorithm 3
    return distance.mean() - weight * reward.mean()


def reward_gradient(z0_hat: Tensor, score: ScoreFn, *, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Scores (B,) and d score_b / d z0_hat_b (B,C,H,W) at the detached `z0_hat`, decoding `chunk_size` rows at a time.

    The reward's chain (decoder, reward network) is several times larger than the student's; differentiating it chunk
    by chunk bounds its memory by the chunk, exactly, since each row's reward depends on that row alone.
    """
    scores, gradients = [], []
    for start in range(0, len(z0_hat), chunk_size):
        rows = slice(start, min(start + chunk_size, len(z0_hat)))
        with torch.enable_grad():
            leaf = z0_hat[rows].detach().requires_grad_()
            reward = score(leaf, rows)
            (gradient,) = torch.autograd.grad(reward.sum(), leaf)
        scores.append(reward.detach())
        gradients.append(gradient)
    return torch.cat(scores), torch.cat(gradients)


def surrogate(z0_hat: Tensor, gradient: Tensor) -> Tensor:
    """<z0_hat_b, gradient_b> (B,): has the reward's gradient, not its value; takes the reward's place in `rg_lcd_loss`."""
    return (z0_hat * gradient).flatten(1).sum(dim=1)


def gradient_share(of: Tensor, against: Tensor) -> Tensor:
    """||of_b|| / (||of_b|| + ||against_b||) (B,) in [0, 1], of two gradients (B,C,H,W) at the same z0; 0 where both vanish."""
    ours, theirs = (gradient.flatten(1).norm(dim=1) for gradient in (of, against))
    share: Tensor = ours / (ours + theirs).clamp_min(torch.finfo(ours.dtype).tiny)
    return share
