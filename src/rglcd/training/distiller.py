"""The distiller: one training step of (reward guided) latent consistency distillation, assembled from the core.

Shapes: B batch (this rank's share), (C, h, w) latents, N grid steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.consistency import BoundaryScalings, StudentFn
from rglcd.core.distances import Distance
from rglcd.core.distillation import (
    Draws,
    LcdTerms,
    NeighbourFn,
    gradient_share,
    lcd_terms,
    noised_neighbour,
    one_step_prediction,
    rg_lcd_loss,
    solved_neighbour,
    surrogate,
)
from rglcd.core.ema import ema_update
from rglcd.core.prediction import Prediction
from rglcd.core.solver import DDIMSolver
from rglcd.core.timesteps import weighted_index
from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.latents.order import sample_indices
from rglcd.models.codec import Codec, Moments
from rglcd.models.dropout import drop_in
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.training.checkpoint import optimizer_tensors, restore_optimizer
from rglcd.training.distributed import World
from rglcd.training.draws import draw_batch, draw_prediction, draw_seeds
from rglcd.training.execution import Execution
from rglcd.training.optimization import LearningRate, adamw, optimise
from rglcd.training.reward_guidance import Guidance, Guide, Scores, Texts

Timesteps = Callable[[Tensor], Tensor]
"""Probabilities (N,) of the grid steps between the rising noise levels (N + 1,) at their ends."""

Weighting = Callable[[Tensor, Tensor], Tensor]
"""Weights (N,) of the loss on the steps between the noise levels (N + 1,), which are drawn with probabilities (N,)."""


@dataclass(frozen=True)
class EmaTarget:
    """The target network is the student's moving average, and so is what is evaluated."""

    decay: float


@dataclass(frozen=True)
class StopGradientTarget:
    """The target network is the student; an average is kept for evaluation if it is given a decay."""

    evaluation_decay: float | None


@dataclass(frozen=True)
class SharedPrediction:
    """The reward sees every n-th of the predictions that the distillation has made."""

    every: int


@dataclass(frozen=True)
class OwnPrediction:
    """The reward sees predictions of its own of every n-th sample, at timesteps of its own."""

    every: int
    timesteps: Timesteps


@dataclass(frozen=True)
class Recipe:
    """The run in plain values. ``num_grid_steps`` gives the solver's steps at a training step; ``batch_size`` is global.

    ``neighbour`` says who leads to the next point of the path: the teacher, or the data alone.
    """

    batch_size: int
    learning_rate: LearningRate
    weight_decay: float
    max_grad_norm: float
    target: EmaTarget | StopGradientTarget
    neighbour: Literal["teacher", "data"]
    omega: tuple[float, float]
    caption_dropout: float
    dropout: float
    distance: Distance
    timesteps: Timesteps
    weighting: Weighting
    scalings: BoundaryScalings
    num_grid_steps: Callable[[int], int]
    rewarded: SharedPrediction | OwnPrediction
    precision: torch.dtype
    execution: Execution
    seed: int


@dataclass(frozen=True)
class Grid:
    """The solver at one stage of the curriculum; how likely each of its steps is (N,), and what it counts for (N,)."""

    solver: DDIMSolver
    probabilities: Tensor
    weights: Tensor
    rewarded: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step trains on: clean latents, conditions, scorers' text features and scores of the real images, and the draws."""

    z0: Tensor
    cond: Condition
    texts: Texts
    scores: Scores
    draws: Draws


class Distiller:
    """Student, its moving average if one is kept, and everything frozen that teaches them."""

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
        self._rows = world.rows(recipe.batch_size)
        self._rewarded_rows = _every(recipe.rewarded.every, share=self._rows.stop - self._rows.start)
        self.average = student.copy() if _decay(recipe.target) is not None else None
        networks = [network.unet for network in (student, self.average) if network is not None]
        self._dropouts = drop_in(networks, rate=recipe.dropout)
        recipe.execution.apply([*networks, teacher.unet, codec.vae.decoder])
        self.student = student.through(world.wrap(student.unet))
        self.target = self.average if self.average is not None and isinstance(recipe.target, EmaTarget) else student
        self.teacher = teacher
        self.codec = codec
        self.text_encoder = text_encoder
        self.cache = cache
        self.guide = guide
        self.world = world
        self._parameters = list(student.trainable_parameters.values())
        self._optimizer = adamw(self._parameters, weight_decay=recipe.weight_decay)
        self._null = text_encoder.null()
        self._grids: dict[int, Grid] = {}

    @property
    def evaluated(self) -> Student:
        """The student whose weights are evaluated: the average, where one is kept."""
        return self.student if self.average is None else self.average

    def step(self, step: int) -> dict[str, Tensor]:
        """Train on global batch ``step``: distil, guide, average, and let the guide learn."""
        grid = self._grid(step)
        batch = self._batch(step)
        self._drop(step)
        terms = self._terms(batch, grid)
        distance = grid.weights[batch.draws.index].to(terms.distance) * terms.distance
        figures = {"distance": distance.detach().mean()}
        if self.guide is None:
            distance.mean().backward()
        else:
            z0_hat = self._rewarded(step, batch, terms, grid)
            guidance = self._guidance(self.guide, z0_hat, batch)
            figures |= self._reward_figures(guidance, distance, terms, weight=self.guide.weight)
            rg_lcd_loss(distance, surrogate(z0_hat, guidance.gradient), self.guide.weight).backward()
        figures["grad_norm"] = self._update(step)
        if self.guide is not None:
            figures |= self.guide.learn(step, (terms.z0_hat.detach(), terms.target, batch.z0), batch.texts, batch.scores)
        return figures

    def parts(self) -> dict[str, dict[str, Tensor]]:
        averages: dict[str, dict[str, Tensor]] = {} if self.average is None else {"average": {**self.average.trainable_parameters}}
        guide = {} if self.guide is None else self.guide.parts()
        optimizer = optimizer_tensors(self._optimizer, self.student.unet)
        return {"student": {**self.student.trainable_parameters}, **averages, "optimizer": optimizer, **guide}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.student.restore(parts["student"])
        if self.average is not None:
            self.average.restore(parts["average"])
        restore_optimizer(self._optimizer, self.student.unet, parts["optimizer"])
        if self.guide is not None:
            self.guide.restore(parts)

    # --- what a step is made of ------------------------------------------------------------------

    def _terms(self, batch: Batch, grid: Grid) -> LcdTerms:
        return lcd_terms(
            student=self._autocast(self.student),
            target=self._autocast(self.target),
            neighbour=self._neighbour(batch, grid),
            z0=batch.z0,
            cond=batch.cond,
            draws=batch.draws,
            solver=grid.solver,
            scalings=self.recipe.scalings,
            distance=self.recipe.distance,
        )

    def _neighbour(self, batch: Batch, grid: Grid) -> NeighbourFn:
        if self.recipe.neighbour == "data":
            return noised_neighbour(batch.z0, batch.draws.eps, grid.solver.schedule)
        return solved_neighbour(self.teacher, omega=batch.draws.omega, cond=batch.cond, uncond=self._null, solver=grid.solver)

    def _rewarded(self, step: int, batch: Batch, terms: LcdTerms, grid: Grid) -> Tensor:
        """The one-step predictions (b, C, h, w) that the reward looks at, with gradient."""
        recipe, rows = self.recipe, self._rewarded_rows
        if isinstance(recipe.rewarded, SharedPrediction):
            return terms.z0_hat[rows]
        whole = draw_prediction(recipe.seed, step, batch_size=recipe.batch_size, latent_shape=self.cache.latent_shape)
        draws = whole.rows(self._rows, self.world)
        t = grid.solver.pair(weighted_index(draws.grid[rows], grid.rewarded)).t
        z_t = grid.solver.schedule.diffuse(batch.z0[rows], draws.eps[rows], t)
        self._drop(step, rows)
        omega, cond = batch.draws.omega[rows], batch.cond[rows]
        return one_step_prediction(self._autocast(self.student), z_t, t, omega=omega, cond=cond, scalings=recipe.scalings)

    def _guidance(self, guide: Guide, z0_hat: Tensor, batch: Batch) -> Guidance:
        return guide.guide(z0_hat, {name: features[self._rewarded_rows] for name, features in batch.texts.items()})

    def _reward_figures(self, guidance: Guidance, distance: Tensor, terms: LcdTerms, *, weight: float) -> dict[str, Tensor]:
        """The mean reward, and how much of the pull on the prediction is its: 0 none, 1 all."""
        (against,) = torch.autograd.grad(distance.mean(), terms.z0_hat, retain_graph=True)
        pull = weight / len(guidance.scores) * guidance.gradient
        share = gradient_share(of=pull, against=against[self._rewarded_rows])
        return {"reward": guidance.scores.mean(), "reward_share": share.mean()}

    def _update(self, step: int) -> Tensor:
        """Step the student and its average; the gradient's norm before clipping."""
        recipe = self.recipe
        norm = optimise(self._optimizer, self._parameters, rate=recipe.learning_rate.at(step), max_grad_norm=recipe.max_grad_norm)
        decay = _decay(recipe.target)
        if self.average is not None and decay is not None:
            ema_update(self.average.trainable_parameters.values(), self.student.trainable_parameters.values(), decay)
        return norm

    def _batch(self, step: int) -> Batch:
        """This rank's rows of global batch ``step``."""
        recipe, place = self.recipe, self.world.to_device
        indices = sample_indices(recipe.seed, len(self.cache), start=step * recipe.batch_size, count=recipe.batch_size)
        cached = self.cache.batch(indices[self._rows], place=place)
        whole = draw_batch(recipe.seed, step, batch_size=recipe.batch_size, latent_shape=self.cache.latent_shape)
        draws = whole.rows(self._rows, self.world)
        z0 = self.codec.latents(Moments(cached.mean, cached.logvar), draws.posterior)
        caption = self.text_encoder.encode(cached.input_ids) if cached.caption is None else cached.caption
        cond = caption.with_time_ids(cached.time_ids).with_caption_of(self._null, draws.caption < recipe.caption_dropout)
        low, high = recipe.omega
        index = weighted_index(draws.grid, self._grid(step).probabilities)
        return Batch(z0, cond, cached.text, cached.scores, Draws(index=index, omega=low + (high - low) * draws.omega, eps=draws.eps))

    def _grid(self, step: int) -> Grid:
        """The grid of training step ``step``, made once for each stage of the curriculum."""
        num_steps = self.recipe.num_grid_steps(step)
        if num_steps not in self._grids:
            solver = DDIMSolver(self.teacher.schedule, num_steps)
            levels = solver.schedule.ve_sigma().double()[solver.boundaries]
            probabilities = self.recipe.timesteps(levels)
            own = self.recipe.rewarded.timesteps(levels) if isinstance(self.recipe.rewarded, OwnPrediction) else probabilities
            self._grids[num_steps] = Grid(solver, probabilities, self.recipe.weighting(levels, probabilities), own)
        return self._grids[num_steps]

    def _drop(self, step: int, rows: slice = slice(None)) -> None:
        """Give every dropout of student and average this step's masks of these rows, the same to all."""
        if self._dropouts:
            seeds = self.world.to_device(draw_seeds(self.recipe.seed, step, batch_size=self.recipe.batch_size)[self._rows])
            for dropout in self._dropouts:
                dropout.seeds = seeds[rows]

    def _autocast(self, network: StudentFn) -> StudentFn:
        """``network`` in the run's precision; only what trains is cast at each call, the frozen are cast already.

        Each call is a context of its own: within one, the casts that a pass without gradient made would be reused.
        """
        if self.recipe.precision == torch.float32:
            return network

        def cast(z_t: Tensor, t: Tensor, omega: Tensor, cond: Condition, /) -> Prediction:
            with torch.autocast(self.world.device.type, dtype=self.recipe.precision):
                return network(z_t, t, omega, cond)

        return cast


def _decay(target: EmaTarget | StopGradientTarget) -> float | None:
    return target.decay if isinstance(target, EmaTarget) else target.evaluation_decay


def _every(every: int, *, share: int) -> slice:
    """Every n-th row of a rank's ``share``; :class:`InputError` when other ranks would then take other samples."""
    if share % every:
        raise InputError(f"reward.prediction.every {every} does not divide the {share} samples of a process")
    return slice(None, None, every)
