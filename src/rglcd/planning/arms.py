"""What the arms of a distillation cost together: the one that takes most memory, and the operations of all."""

import math
from collections.abc import Sequence
from pathlib import Path

from rglcd.config import AnyReward, ArmSettings, Config, Distillation, NoReward, has_reward
from rglcd.planning.memory import StageMemory
from rglcd.planning.networks import Networks
from rglcd.planning.training import TrainingCost, training_cost


def costs_of_arms(config: Config, pretrained: Path | None, *, count: int) -> tuple[StageMemory, float]:
    """The memory of the arm that takes most on ``count`` GPUs, and the operations of all. Raises :class:`InputError` as one alone does."""
    costs = _costs(config, pretrained, count=count)
    memory = max((cost.memory for _, cost in costs), key=lambda one: one.bytes_at(one.samples))
    return memory, _flops(costs, _matched(config, costs, pretrained, count=count))


def _costs(config: Config, pretrained: Path | None, *, count: int) -> list[tuple[ArmSettings, TrainingCost]]:
    """Each arm with what a run of its sections costs.

    One without a reward takes the costs of one that has a reward and is distilled alike: they count a plain step too.
    """
    known: list[tuple[ArmSettings, TrainingCost]] = []
    for arm in sorted(config.arms, key=has_reward, reverse=True):
        alike = (cost for other, cost in known if other.distillation == arm.distillation and arm.reward in (other.reward, NoReward()))
        cost = next(alike, None) or training_cost(Networks(with_sections(config, arm.reward, arm.distillation), pretrained), count=count)
        known.append((arm, cost))
    return known


def with_sections(config: Config, reward: AnyReward, distillation: Distillation) -> Config:
    """``config`` as an arm has it that has these sections."""
    return config.model_copy(update={"reward": reward, "distillation": distillation})


def _flops(costs: Sequence[tuple[ArmSettings, TrainingCost]], matched: float) -> float:
    """Of all arms; one without a reward takes ``matched`` times its steps unless it says its own."""
    flops = []
    for arm, cost in costs:
        seen = arm.distillation.num_steps * arm.distillation.batch_size
        longer = 1.0 if has_reward(arm) or arm.has_own_length else matched
        flops.append(seen * longer * (cost.guided_flops if has_reward(arm) else cost.plain_flops))
    return math.fsum(flops)


def _matched(config: Config, costs: Sequence[tuple[ArmSettings, TrainingCost]], pretrained: Path | None, *, count: int) -> float:
    """How many times a plain step's operations a guided one takes, where lengths are matched by that; else one."""
    if not config.distillation.match_compute or config.reward == NoReward():
        return 1.0
    cost = next((cost for arm, cost in costs if (arm.reward, arm.distillation) == (config.reward, config.distillation)), None)
    cost = cost or training_cost(Networks(config, pretrained), count=count)
    return cost.guided_flops / cost.plain_flops
