"""One run's recipe: the choices of :mod:`rglcd.recipe` with the numbers they need, and the solver's grid that follows."""

from dataclasses import dataclass
from typing import assert_never

from torch import Tensor

from rglcd import recipe
from rglcd.core.consistency import Boundary
from rglcd.core.schedule import NoiseSchedule
from rglcd.core.solver import DDIMSolver
from rglcd.training.choices import loss_weights, num_grid_steps, step_probabilities
from rglcd.training.execution import Execution
from rglcd.training.optimization import LearningRate


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a run but its networks and data.

    ``batch_size`` is global; ``micro_batch`` is how many samples a process works on at once, None all of its own.
    """

    num_steps: int
    batch_size: int
    learning_rate: LearningRate
    weight_decay: float
    max_grad_norm: float
    target: recipe.Target
    neighbour: recipe.Neighbour
    omega: tuple[float, float]
    caption_dropout: float
    dropout: float
    distance: recipe.Distance
    timesteps: recipe.Timesteps
    weighting: recipe.Weighting
    grid: recipe.Grid
    num_ddim_steps: int
    prediction: recipe.Prediction
    scalings: Boundary
    precision: recipe.Precision
    execution: Execution
    seed: int
    micro_batch: int | None = None
    activations: recipe.Activations = "kept"
    all_reduce: recipe.Precision = "float32"

    def num_grid_steps(self, step: int) -> int:
        """How many steps the solver's grid has at training step ``step``."""
        return num_grid_steps(self.grid, step, total_steps=self.num_steps, num_ddim_steps=self.num_ddim_steps)


@dataclass(frozen=True)
class GridStage:
    """The solver at one stage of the curriculum, of N steps.

    ``probabilities`` (N,) of each step being drawn, ``weights`` (N,) of the loss there, and the probabilities (N,)
    ``rewarded`` of the predictions that the reward looks at.
    """

    solver: DDIMSolver
    probabilities: Tensor
    weights: Tensor
    rewarded: Tensor

    @classmethod
    def of(cls, run: Recipe, schedule: NoiseSchedule, num_steps: int) -> "GridStage":
        """The stage whose grid has ``num_steps`` steps of ``schedule``."""
        solver = DDIMSolver(schedule, num_steps)
        levels, gaps = (table.double()[solver.boundaries] for table in (schedule.ve_sigma(), schedule.gap_sigma()))
        probabilities = step_probabilities(run.timesteps, levels)
        rewarded = _rewarded_probabilities(run.prediction, levels, distilled=probabilities)
        return cls(solver, probabilities, loss_weights(run.weighting, gaps, probabilities), rewarded)


def _rewarded_probabilities(chosen: recipe.Prediction, levels: Tensor, *, distilled: Tensor) -> Tensor:
    match chosen:
        case recipe.SharedPrediction():
            return distilled
        case recipe.OwnPrediction():
            return step_probabilities(chosen.timesteps, levels)
        case _:
            assert_never(chosen)
