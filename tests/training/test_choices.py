"""Every choice of the recipe is computed by a function of its own, and one that nobody knows by none."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from rglcd import recipe
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.training import choices, controls
from rglcd.training.reward_guidance import privileged_candidate
from tests.training.test_reward_guidance import Redness

LEVELS = torch.tensor([0.1, 0.5, 1.0, 4.0, 14.0], dtype=torch.float64)
EVEN = torch.full((4,), 0.25, dtype=torch.float64)
PREDICTION, TARGET = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
SCORES = torch.tensor([[0.2, 0.9], [0.4, 0.9], [0.1, 0.3]])


class NoProxy(LatentRewardModel):
    """Takes down which of its parts were left to training."""

    def __init__(self) -> None:
        self.shape, self.left_to_training = None, "everything"

    @classmethod
    def at_random(cls, shape: Any, *, seed: int) -> "NoProxy":
        return cls()

    def train_last(self, num_blocks: int, *, text: bool) -> None:
        self.left_to_training = (num_blocks, text)


def restricted(trains: recipe.Trains) -> Any:
    proxy = NoProxy()
    controls.restrict_training(proxy, trains)
    return proxy.left_to_training


UNIONS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "distance": (recipe.Distance, lambda chosen: choices.distance_function(chosen)(PREDICTION, TARGET)),
    "timesteps": (recipe.Timesteps, lambda chosen: choices.step_probabilities(chosen, LEVELS)),
    "weighting": (recipe.Weighting, lambda chosen: choices.loss_weights(chosen, LEVELS, EVEN)),
    "grid": (recipe.Grid, lambda chosen: choices.num_grid_steps(chosen, 0, total_steps=10, num_ddim_steps=50)),
    "target": (recipe.Target, choices.average_decay),
    "labels": (recipe.Labels, lambda chosen: choices.label_function(chosen, Redness())(SCORES)),
    "precision": (recipe.Precision, choices.dtype_of),
    "pairing": (recipe.Pairing, lambda chosen: controls.shuffle(SCORES, chosen, generator=torch.Generator().manual_seed(1))),
    "ties": (recipe.Ties, choices.ties_count),
    "real_image": (recipe.RealImage, privileged_candidate),
    "trains": (recipe.Trains, restricted),
}


def members(union: Any) -> list[Any]:
    """An instance of each class of a union, or each string of a literal."""
    return [member() if isinstance(member, type) else member for member in get_args(union)]


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) and one.shape == other.shape else bool(one is other or one == other)


@pytest.mark.parametrize("name", UNIONS)
def test_each_choice_of_a_union_computes_something_of_its_own(name: str) -> None:
    union, function = UNIONS[name]
    computed = [function(chosen) for chosen in members(union)]
    assert len(computed) >= 2
    assert not any(same(one, other) for number, one in enumerate(computed) for other in computed[:number])


@pytest.mark.parametrize("name", UNIONS)
def test_an_unknown_choice_is_an_error_and_not_the_last_of_the_known(name: str) -> None:
    function = UNIONS[name][1]
    with pytest.raises(AssertionError, match="Expected code to be unreachable"):
        function("l1")


def test_a_choice_added_to_the_recipe_alone_fails_the_type_check(tmp_path: Path) -> None:
    """mypy follows the imports of a copy in which the recipe has one distance more."""
    source = Path(recipe.__file__).parent
    for name in ("__init__.py", "recipe.py", "errors.py", "training/__init__.py", "training/choices.py"):
        (tmp_path / "rglcd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rglcd" / name).write_text((source / name).read_text(encoding="utf-8"), encoding="utf-8")
    assert type_errors(tmp_path) == []
    text = (tmp_path / "rglcd" / "recipe.py").read_text(encoding="utf-8")
    l1 = "@dataclass(frozen=True, kw_only=True)\nclass L1(Choice):\n    kind: Literal['l1'] = 'l1'\n\n\nDistance = L1 | "
    (tmp_path / "rglcd" / "recipe.py").write_text(text.replace("Distance = ", l1), encoding="utf-8")
    (error,) = type_errors(tmp_path)
    assert "choices.py" in error
    assert 'incompatible type "L1"; expected "Never"' in error


def type_errors(folder: Path) -> list[str]:
    quick = [
        "--python-version=3.11",
        "--follow-imports=skip",
        "--ignore-missing-imports",
        "--no-site-packages",
        "--no-incremental",
        "--config-file=",
    ]
    command = [sys.executable, "-m", "mypy", *quick, "rglcd/recipe.py", "rglcd/training/choices.py"]
    done = subprocess.run(command, cwd=folder, env={"MYPYPATH": str(folder)}, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def test_labels_are_scores_at_the_experts_scale_or_a_given_one_or_certain() -> None:
    scores = torch.tensor([[0.2, 0.9], [0.4, 0.9], [0.1, 0.3]])
    expert = Redness()
    expert.logit_scale = 7.0
    torch.testing.assert_close(choices.label_function(recipe.SoftLabels(), expert)(scores), 7 * scores)
    torch.testing.assert_close(choices.label_function(recipe.SoftLabels(logit_scale=100.0), expert)(scores), 100 * scores)
    first, second = torch.triu_indices(3, 3, offset=1)
    certain = choices.label_function(recipe.HardLabels(), expert)(scores)
    assert (certain[first] - certain[second]).sigmoid().T.tolist() == [[0, 1, 1], [0.5, 1, 1]]
