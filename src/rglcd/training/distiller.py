"""The distiller: one training step of (reward guided) latent consistency distillation, assembled from the core.

Shapes: B batch (this rank's share), (C, h, w) latents, (L, D) text positions and width.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rglcd.core.condition import Condition
from rglcd.core.consistency import BoundaryScalings
from rglcd.core.distances import Distance
from rglcd.core.distillation import Draws, LcdTerms, lcd_terms, rg_lcd_loss, surrogate
from rglcd.core.ema import ema_update
from rglcd.core.solver import DDIMSolver
from rglcd.core.timesteps import uniform_index
from rglcd.data.latents import LatentCache
from rglcd.data.order import sample_indices
from rglcd.models.codec import Codec, Moments
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.training.checkpoint import optimizer_tensors, restore_optimizer
from rglcd.training.distributed import World
from rglcd.training.draws import BatchDraws, draw_batch
from rglcd.training.guides import Guide, Texts
from rglcd.training.optimization import LearningRate, adamw, optimise


@dataclass(frozen=True)
class Recipe:
    """The run in plain values. ``num_grid_steps`` gives the solver's steps at a training step; ``batch_size`` is global."""

    batch_size: int
    learning_rate: LearningRate
    weight_decay: float
    max_grad_norm: float
    ema_decay: float
    omega: tuple[float, float]
    caption_dropout: float
    distance: Distance
    scalings: BoundaryScalings
    num_grid_steps: Callable[[int], int]
    precision: torch.dtype
    seed: int


@dataclass(frozen=True)
class Batch:
    """What one step trains on: clean latents, text conditions, scorers' text features, and the step's draws."""

    z0: Tensor
    cond: Condition
    texts: Texts
    draws: Draws


class Distiller:
    """Student, its moving average, and everything frozen that teaches them."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        student: Student,
        teacher: Teacher,
        codec: Codec,
        text_encoder: TextEncoder,
        cache: LatentCache,
        guide: Guide | None,
        world: World,
    ) -> None:
        self.recipe = recipe
        self.student = student.through(world.wrap(student.unet))
        self.target = student.copy()
        self.teacher = teacher
        self.codec = codec
        self.text_encoder = text_encoder
        self.cache = cache
        self.guide = guide
        self.world = world
        self._rows = world.rows(recipe.batch_size)
        self._parameters = list(student.learnt.values())
        self._optimizer = adamw(self._parameters, weight_decay=recipe.weight_decay)
        self._null = text_encoder.encode(text_encoder.null_ids())

    def step(self, step: int) -> dict[str, Tensor]:
        """Train on global batch ``step``: distil, guide, average, and let the guide learn."""
        batch = self._batch(step)
        figures: dict[str, Tensor] = {}
        with self._autocast():
            terms = self._terms(batch, DDIMSolver(self.teacher.schedule, self.recipe.num_grid_steps(step)))
            loss = terms.distance.mean()
        if self.guide is not None:
            guidance = self.guide.guide(terms.z0_hat, batch.texts)
            loss = rg_lcd_loss(terms.distance, surrogate(terms.z0_hat, guidance.gradient), self.guide.weight)
            figures["reward"] = guidance.scores.mean()
        loss.backward()
        rate = self.recipe.learning_rate.at(step)
        figures["grad_norm"] = optimise(self._optimizer, self._parameters, rate=rate, max_grad_norm=self.recipe.max_grad_norm)
        ema_update(self.target.learnt.values(), self.student.learnt.values(), self.recipe.ema_decay)
        if self.guide is not None:
            figures |= self.guide.learn((terms.z0_hat.detach(), terms.target, batch.z0), batch.texts)
        return {"distance": terms.distance.detach().mean(), **figures}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        networks: dict[str, dict[str, Tensor]] = {"student": {**self.student.learnt}, "target": {**self.target.learnt}}
        return (
            networks
            | {"optimizer": optimizer_tensors(self._optimizer, self.student.unet)}
            | (self.guide.parts() if self.guide is not None else {})
        )

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.student.restore(parts["student"])
        self.target.restore(parts["target"])
        restore_optimizer(self._optimizer, self.student.unet, parts["optimizer"])
        if self.guide is not None:
            self.guide.restore(parts)

    def _terms(self, batch: Batch, solver: DDIMSolver) -> LcdTerms:
        return lcd_terms(
            student=self.student,
            target=self.target,
            teacher=self.teacher,
            z0=batch.z0,
            cond=batch.cond,
            uncond=self._null,
            draws=batch.draws,
            solver=solver,
            schedule=self.teacher.schedule,
            scalings=self.recipe.scalings,
            distance=self.recipe.distance,
        )

    def _batch(self, step: int) -> Batch:
        """This rank's rows of global batch ``step``."""
        recipe, device = self.recipe, self.world.device
        indices = sample_indices(recipe.seed, len(self.cache), start=step * recipe.batch_size, count=recipe.batch_size)
        cached = self.cache.batch(indices[self._rows])
        whole = draw_batch(recipe.seed, step, batch_size=recipe.batch_size, latent_shape=self.cache.latent_shape)
        draws = whole.rows(self._rows, device)
        z0 = self.codec.latents(Moments(cached.mean.to(device), cached.logvar.to(device)), draws.posterior)
        kept = cached.text_embeddings
        cond = self.text_encoder.encode(cached.input_ids) if kept is None else Condition(kept.to(device))
        cond = cond.with_caption_of(self._null, draws.caption < recipe.caption_dropout)
        texts = {name: features.to(device) for name, features in cached.text.items()}
        return Batch(z0, cond, texts, self._draws(draws, step))

    def _draws(self, draws: BatchDraws, step: int) -> Draws:
        low, high = self.recipe.omega
        index = uniform_index(draws.grid, self.recipe.num_grid_steps(step))
        return Draws(index=index, omega=low + (high - low) * draws.omega, eps=draws.eps)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.recipe.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.world.device.type, dtype=self.recipe.precision)


class _FlopCount(TorchDispatchMode):
    """Adds up torch's own formulas (convolutions, matrix products) for every operation that runs, backward included.

    torch's ``FlopCounterMode`` also follows modules, with hooks that do not bear the ``autograd.grad`` of the reward.
    """

    total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def flops_of_step(distiller: Distiller) -> int:
    """Floating point operations of one whole step, guide included. The distiller has trained one step afterwards: throw it away."""
    count = _FlopCount()  # type: ignore[no-untyped-call]  # its base class has no types
    with count:
        distiller.step(0)
    return int(count.total)
