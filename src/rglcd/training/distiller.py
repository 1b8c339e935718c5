"""The distiller: one training step of (reward guided) latent consistency distillation, assembled from the core.

The batch may be cut into micro-batches, whose gradients add up. What concerns the batch as a whole (draws, the proxy's labels,
figures) is made of the whole batch: only the networks run on parts of it.

Shapes: B batch (this rank's share), m micro-batch, b <= m rewarded samples of it, (C, h, w) latents, N grid steps.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

import torch
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.consistency import StudentFn
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
from rglcd.core.timesteps import weighted_index
from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.models.codec import Codec, Moments
from rglcd.models.dropout import drop_in
from rglcd.models.recomputation import recompute_activations
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.recipe import Activations, EmaTarget, OwnPrediction, SharedPrediction
from rglcd.training.batch import Batch, Outcome, figures_of
from rglcd.training.checkpoint import optimizer_tensors, restore_optimizer
from rglcd.training.choices import average_decay, distance_function, dtype_of
from rglcd.training.distributed import World, accumulated, micro_batches
from rglcd.training.draws import PredictionDraws, draw_batch, draw_prediction, draw_seeds
from rglcd.training.optimization import adamw, clip, optimise
from rglcd.training.reading import ReadAhead, Reader
from rglcd.training.reward_guidance import RewardGradient, RewardGuidance
from rglcd.training.run_recipe import GridStage, Recipe


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
        reward_guidance: RewardGuidance | None,
        world: World,
    ) -> None:
        self.recipe = recipe
        self._rows = world.rows(recipe.batch_size)
        share = self._rows.stop - self._rows.start
        self._rewarded_rows = _every(recipe.prediction.every, share=share)
        self._num_rows = share
        self._micro_batches = _cut(share, recipe)
        self.average = student.copy() if average_decay(recipe.target) is not None else None
        networks = [network.unet for network in (student, self.average) if network is not None]
        self._seeds = drop_in(networks, rate=recipe.dropout)
        self._keep_or_recompute(student, recipe.activations)
        recipe.execution.apply([*networks, teacher.unet, codec.vae.decoder])
        network = world.wrap(student.unet, bucket_mib=recipe.execution.bucket_mib, averaged_in=dtype_of(recipe.all_reduce))
        self.student = student.through(network)
        self.target = self.average if self.average is not None and isinstance(recipe.target, EmaTarget) else student
        self.teacher = teacher
        self.codec = codec
        self.text_encoder = text_encoder
        self.cache = cache
        reader = Reader(cache, len(cache), recipe.seed, recipe.batch_size, self._rows, draw_batch)
        self._read = ReadAhead(reader, num_steps=recipe.num_steps)
        self.reward_guidance = reward_guidance
        self.world = world
        self._parameters = list(student.trainable_parameters.values())
        self._optimizer = adamw(self._parameters, weight_decay=recipe.weight_decay)
        self._null = text_encoder.null()
        self._distance = distance_function(recipe.distance)
        self._grids: dict[int, GridStage] = {}

    @property
    def evaluated(self) -> Student:
        """The student whose weights are evaluated: the average, where one is kept."""
        return self.student if self.average is None else self.average

    def step(self, step: int) -> dict[str, Tensor]:
        """Train on global batch ``step``: distil under the reward's guidance, average, and let the reward's proxy learn."""
        grid, batch, own = self._grid(step), self._batch(step), self._own_draws(step)
        outcomes = [self._learn(step, rows, batch[rows], grid, own) for rows in accumulated(self.student.network, self._micro_batches)]
        figures = {name: torch.cat(rows).mean() for name, rows in figures_of(outcomes).items()}
        figures["grad_norm"] = self._update(step)
        if self.reward_guidance is not None:
            predictions, targets = (torch.cat(rows) for rows in zip(*((made.z0_hat, made.target) for made in outcomes), strict=True))
            figures |= self.reward_guidance.learn(step, (predictions, targets, batch.z0), batch.texts, batch.scores)
        return figures

    def parts(self) -> dict[str, dict[str, Tensor]]:
        averages: dict[str, dict[str, Tensor]] = {} if self.average is None else {"average": {**self.average.trainable_parameters}}
        proxy = {} if self.reward_guidance is None else self.reward_guidance.parts()
        optimizer = optimizer_tensors(self._optimizer, self.student.unet)
        return {"student": {**self.student.trainable_parameters}, **averages, "optimizer": optimizer, **proxy}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.student.restore(parts["student"])
        if self.average is not None:
            self.average.restore(parts["average"])
        restore_optimizer(self._optimizer, self.student.unet, parts["optimizer"])
        if self.reward_guidance is not None:
            self.reward_guidance.restore(parts)

    # --- what a step is made of ------------------------------------------------------------------

    def _learn(self, step: int, rows: slice, batch: Batch, grid: GridStage, own: PredictionDraws | None) -> Outcome:
        """Add the gradient of ``batch``, these rows of the process's, to what is there; the loss is the mean over all rows."""
        self._drop(step, rows)
        terms = self._terms(batch, grid)
        distance = grid.weights[batch.draws.index].to(terms.distance) * terms.distance
        part = len(distance) / self._num_rows
        outcome = Outcome(terms.z0_hat.detach(), terms.target, distance.detach())
        if self.reward_guidance is None:
            (part * distance.mean()).backward()
            return outcome
        z0_hat = self._rewarded(step, rows, batch, terms, grid, own)
        reward, weight = self._reward_gradient(self.reward_guidance, z0_hat, batch), self.reward_guidance.weight
        share = self._reward_share(reward, distance, terms, weight=weight)
        (part * rg_lcd_loss(distance, surrogate(z0_hat, reward.gradient), weight)).backward()
        return replace(outcome, reward=reward.scores, reward_share=share)

    def _terms(self, batch: Batch, grid: GridStage) -> LcdTerms:
        return lcd_terms(
            student=self._autocast(self.student),
            target=self._autocast(self.target),
            neighbour=self._neighbour(batch, grid),
            z0=batch.z0,
            cond=batch.cond,
            draws=batch.draws,
            solver=grid.solver,
            scalings=self.recipe.scalings,
            distance=self._distance,
        )

    def _neighbour(self, batch: Batch, grid: GridStage) -> NeighbourFn:
        match self.recipe.neighbour:
            case "teacher":
                return solved_neighbour(
                    self.teacher.guided, omega=batch.draws.omega, cond=batch.cond, uncond=self._null, solver=grid.solver
                )
            case "data":
                return noised_neighbour(batch.z0, batch.draws.eps, grid.solver.schedule)
            case _:
                assert_never(self.recipe.neighbour)

    def _rewarded(self, step: int, rows: slice, batch: Batch, terms: LcdTerms, grid: GridStage, own: PredictionDraws | None) -> Tensor:
        """The one-step predictions (b, C, h, w) that the reward looks at, with gradient."""
        match self.recipe.prediction:
            case SharedPrediction():
                return terms.z0_hat[self._rewarded_rows]
            case OwnPrediction():
                assert own is not None, "drawn once for the whole batch"
                return self._own_prediction(step, rows, batch, grid, own)
            case _:
                assert_never(self.recipe.prediction)

    def _own_draws(self, step: int) -> PredictionDraws | None:
        """This process's rows of the reward's own noise and timesteps, where it has them."""
        recipe = self.recipe
        if not isinstance(recipe.prediction, OwnPrediction):
            return None
        shape = self.cache.latent_shape
        return draw_prediction(recipe.seed, step, batch_size=recipe.batch_size, rows=self._rows, latent_shape=shape).placed(self.world)

    def _own_prediction(self, step: int, rows: slice, batch: Batch, grid: GridStage, own: PredictionDraws) -> Tensor:
        """One more pass of the student, at noise and timesteps that are the reward's."""
        some = self._rewarded_rows
        t = grid.solver.pair(weighted_index(own.grid[rows][some], grid.rewarded)).t
        z_t = grid.solver.schedule.diffuse(batch.z0[some], own.eps[rows][some], t)
        self._drop(step, slice(rows.start, rows.stop, some.step))
        omega, cond = batch.draws.omega[some], batch.cond[some]
        return one_step_prediction(self._autocast(self.student), z_t, t, omega=omega, cond=cond, scalings=self.recipe.scalings)

    def _reward_gradient(self, guidance: RewardGuidance, z0_hat: Tensor, batch: Batch) -> RewardGradient:
        return guidance.gradient(z0_hat, {name: features[self._rewarded_rows] for name, features in batch.texts.items()})

    def _reward_share(self, reward: RewardGradient, distance: Tensor, terms: LcdTerms, *, weight: float) -> Tensor:
        """How much of the pull on each rewarded prediction is the reward's (b,): 0 none, 1 all."""
        (against,) = torch.autograd.grad(distance.mean(), terms.z0_hat, retain_graph=True)
        pull = weight / len(reward.scores) * reward.gradient
        return gradient_share(of=pull, against=against[self._rewarded_rows])

    def _update(self, step: int) -> Tensor:
        """Step the student and its average; the gradient's norm before clipping."""
        recipe = self.recipe
        norm = clip(self._parameters, recipe.max_grad_norm)
        optimise(self._optimizer, rate=recipe.learning_rate.at(step))
        decay = average_decay(recipe.target)
        if self.average is not None and decay is not None:
            ema_update(self.average.trainable_parameters.values(), self.student.trainable_parameters.values(), decay)
        return norm

    def _batch(self, step: int) -> Batch:
        """This rank's rows of global batch ``step``."""
        recipe = self.recipe
        stored, drawn = self._read(step)
        cached, draws = stored.each(self.world.to_device).decoded(), drawn.placed(self.world)
        z0 = self.codec.latents(Moments(cached.mean, cached.logvar), draws.posterior)
        ids = cached.input_ids
        caption = self.text_encoder.encode(ids) if cached.caption is None else self.text_encoder.masked(cached.caption, ids)
        cond = caption.with_time_ids(cached.time_ids).with_caption_of(self._null, draws.caption < recipe.caption_dropout)
        low, high = recipe.omega
        index = weighted_index(draws.grid, self._grid(step).probabilities)
        return Batch(z0, cond, cached.text, cached.scores, Draws(index=index, omega=low + (high - low) * draws.omega, eps=draws.eps))

    def _grid(self, step: int) -> GridStage:
        """The grid of training step ``step``, made once for each stage of the curriculum."""
        num_steps = self.recipe.num_grid_steps(step)
        if num_steps not in self._grids:
            self._grids[num_steps] = GridStage.of(self.recipe, self.teacher.schedule, num_steps)
        return self._grids[num_steps]

    def _drop(self, step: int, rows: slice = slice(None)) -> None:
        """Give every dropout of student and average this step's masks of these rows, the same to all."""
        if self._seeds is not None:
            seeds = draw_seeds(self.recipe.seed, step, batch_size=self.recipe.batch_size, rows=self._rows)
            self._seeds.now = self.world.to_device(seeds[rows])

    def _keep_or_recompute(self, student: Student, activations: Activations) -> None:
        match activations:
            case "kept":
                pass
            case "recomputed":
                recompute_activations(student.unet, self._seeds)
            case _:
                assert_never(activations)

    def _autocast(self, network: StudentFn) -> StudentFn:
        """``network`` in the run's precision; only what trains is cast at each call, the frozen are cast already.

        Each call is a context of its own: within one, the casts that a pass without gradient made would be reused.
        """
        dtype = dtype_of(self.recipe.precision)
        if dtype == torch.float32:
            return network

        def cast(z_t: Tensor, t: Tensor, omega: Tensor, cond: Condition, /) -> Prediction:
            with torch.autocast(self.world.device.type, dtype=dtype):
                return network(z_t, t, omega, cond)

        return cast


def _every(every: int, *, share: int) -> slice:
    """Every n-th row of a rank's ``share``; :class:`InputError` when other ranks would then take other samples."""
    if share % every:
        raise InputError(f"reward.prediction.every {every} does not divide the {share} samples of a process")
    return slice(None, None, every)


def _cut(share: int, recipe: Recipe) -> list[slice]:
    """The micro-batches of a process; :class:`InputError` when they would differ in size, or in how many samples are rewarded.

    Where processes are so many that each has fewer samples, all of its own are one.
    """
    size, every = min(recipe.micro_batch or share, share), recipe.prediction.every
    if share % size:
        raise InputError(
            f"distillation.micro_batch {size} does not divide the {share} samples of a process (batch_size {recipe.batch_size} over "
            f"the processes): choose a divisor of {share}"
        )
    if size < share and size % every:
        raise InputError(f"reward.prediction.every {every} does not divide distillation.micro_batch {size}")
    return micro_batches(share, size)
