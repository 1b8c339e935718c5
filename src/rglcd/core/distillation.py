"""Latent consistency distillation (LCD) and its reward guided form: loss = LCD - reward_weight * reward.

Shapes: z0, z_t, z_s, eps (B,C,H,W)    t, s, index, omega, reward (B,)    cond B rows    uncond 1 row or B
"""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.consistency import BoundaryScalings, StudentFn, TeacherFn, consistency_output
from rglcd.core.distances import Distance
from rglcd.core.guidance import guided_teacher
from rglcd.core.schedule import NoiseSchedule
from rglcd.core.solver import DDIMSolver


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


class ScoreFn(Protocol):
    """Rewards (b,) of the clean latents `z0` (b,C,H,W) of the batch's samples `rows`, each by itself."""

    def __call__(self, z0: Tensor, rows: slice, /) -> Tensor: ...


def lcd_terms(
    *,
    student: StudentFn,
    target: StudentFn,
    teacher: TeacherFn,
    z0: Tensor,
    cond: Condition,
    uncond: Condition,
    draws: Draws,
    solver: DDIMSolver,
    schedule: NoiseSchedule,
    scalings: BoundaryScalings,
    distance: Distance,
) -> LcdTerms:
    """LCD for a batch (LCM Algorithm 1, RG-LCD Algorithm 3 but for the reward): one student pass carries the gradient.

    `target` is the student's moving average, or the student itself as in iCT: it never receives a gradient. The pass
    without gradient runs first, so that the teacher's workspace is free again when the student keeps its activations.
    """
    pair = solver.pair(draws.index)
    z_t = schedule.diffuse(z0, draws.eps, pair.t)
    with torch.no_grad():
        guided = guided_teacher(teacher, z_t, pair.t, omega=draws.omega, cond=cond, uncond=uncond)
        z_s = solver.step(guided, pair.s)
        aim = consistency_output(target(z_s, pair.s, draws.omega, cond), z_s, pair.s, scalings=scalings)
    z0_hat = consistency_output(student(z_t, pair.t, draws.omega, cond), z_t, pair.t, scalings=scalings)
    # d(f(z_{t_{n+k}}, omega, c, t_{n+k}), f^-(z_hat_{t_n}, omega, c, t_n)): LCM Sec. 4.3
    return LcdTerms(z0_hat=z0_hat, target=aim, distance=distance(z0_hat, aim), t=pair.t, s=pair.s)


def rg_lcd_loss(distance: Tensor, reward: Tensor, weight: float) -> Tensor:
    """The scalar to minimise, from `distance` (B,) and `reward` (B,); `weight` is the paper's beta."""
    assert distance.shape == reward.shape, "one reward for each distance"
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
    """<z0_hat_b, gradient_b> (B,): stands for the reward in `rg_lcd_loss`, with its gradient though not its value."""
    return (z0_hat * gradient).flatten(1).sum(dim=1)
