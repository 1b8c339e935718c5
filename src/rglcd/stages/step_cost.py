"""What training and drawing cost, in floating point operations, counted on throw-away networks: the same on any machine."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar, assert_never

import torch

from rglcd import progress
from rglcd.config import AnyReward, LatentReward, NoReward, PixelReward
from rglcd.recipe import OnlineProxy
from rglcd.stages.assembly import Materials, make_distiller
from rglcd.store.manifest import digest_of
from rglcd.training.distiller import Distiller
from rglcd.training.distributed import World
from rglcd.training.operations import flops_of_step

Counted = TypeVar("Counted")


@dataclass(frozen=True)
class StepCosts:
    """Counts steps of a stage's arms, each once."""

    materials: Materials
    _counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By reward, the samples of the step that was counted, and its operations."""

    def relative(self, reward: AnyReward) -> float:
        """Operations of a step that ``reward`` guides over those of a plain one of as many samples."""
        num_samples = _fewest_samples(reward)
        guided, plain = (
            self._flops(chosen, num_samples)
            for chosen in progress.track((reward, NoReward()), task="count the reward's operations", unit="steps")
        )
        return guided / plain

    def of_batch(self, reward: AnyReward) -> float:
        """Operations of a whole batch's step, all processes together."""
        if (key := _key(reward)) not in self._counted:
            self._flops(reward, _fewest_samples(reward))
        num_samples, flops = self._counted[key]
        return flops / num_samples * self.materials.distillation.batch_size

    def _flops(self, reward: AnyReward, num_samples: int) -> int:
        """Operations are proportional to the samples, so the fewest that a step can have are counted."""

        def count(device: torch.device) -> int:
            return flops_of_step(throw_away_distiller(self.materials, reward, device=device, num_samples=num_samples))

        flops = without_values(self.materials, count)
        self._counted[_key(reward)] = num_samples, flops
        return flops


def without_values(materials: Materials, count: Callable[[torch.device], Counted]) -> Counted:
    """What ``count`` gives on ``meta``, where tensors have no values: it takes no memory and no time.

    An expert that reads the values of pixels (one in a process of its own does) cannot be counted there: then on this rank's device.
    """
    try:
        return count(torch.device("meta"))
    except RuntimeError:
        return count(materials.world.device)


def throw_away_distiller(materials: Materials, reward: AnyReward, *, device: torch.device, num_samples: int = 1) -> Distiller:
    """A distiller on ``device`` to count with.

    The networks run eagerly and keep all activations: how fast a run is and how little memory it takes must not change what is counted.
    """
    few = {"batch_size": num_samples, "micro_batch": None, "activations": "kept", "execution": "eager"}
    counted = replace(materials, distillation=materials.distillation.model_copy(update=few))
    return make_distiller(counted, _keeping(reward), num_steps=materials.distillation.num_steps, world=World(0, 1, device))


def _key(reward: AnyReward) -> str:
    return digest_of(reward.model_dump(mode="json"))


def _keeping(reward: AnyReward) -> AnyReward:
    """``reward`` without recomputation."""
    return reward.model_copy(update={"activations": "kept"}) if isinstance(reward, PixelReward) else reward


def _fewest_samples(reward: AnyReward) -> int:
    """One; or so many that, where every n-th is rewarded or labelled, one is."""
    match reward:
        case NoReward():
            return 1
        case LatentReward(tuning=OnlineProxy(label_every=label_every)):
            return math.lcm(reward.prediction.every, label_every)
        case PixelReward() | LatentReward():
            return reward.prediction.every
        case _:
            assert_never(reward)
