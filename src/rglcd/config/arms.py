"""The arms of a distillation: students that differ in a few values and share everything else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from rglcd.config.base import placed
from rglcd.config.distillation import Changes, Distillation
from rglcd.config.explanation import explain
from rglcd.config.plain_values import refuse_switches_for_numbers
from rglcd.config.reward import AnyReward, NoReward, Reward

KNOWN_ARMS: Final[Mapping[str, Changes]] = {"lcm": {"reward": {"kind": "none"}}, "rg": {}}
"""What the two names say of which an arm needs no more than its name."""

_CHANGEABLE: Final = ("reward", "distillation")
# These say which arms there are; no arm has them for itself.
_OF_ALL_ARMS: Final = ("distillation.arms", "distillation.match_compute")
_REWARD: Final[TypeAdapter[AnyReward]] = TypeAdapter(Reward)


@dataclass(frozen=True)
class ArmSettings:
    """One student's own sections. ``has_own_length``: it says itself how many steps it trains."""

    name: str
    reward: AnyReward
    distillation: Distillation
    has_own_length: bool


def arms_of(reward: AnyReward, distillation: Distillation) -> tuple[ArmSettings, ...]:
    """The arms in the order asked for. Raises ValueError, which names arm and key, for changes that the sections refuse."""
    chosen = distillation.arms
    changes = chosen if isinstance(chosen, Mapping) else {name: KNOWN_ARMS[name] for name in chosen}
    return tuple(_arm(name, own, reward, distillation) for name, own in changes.items())


def rewards_of(reward: AnyReward, distillation: Distillation) -> tuple[AnyReward, ...]:
    """The reward section's, and those of arms that have another."""
    return (reward, *(arm.reward for arm in arms_of(reward, distillation) if arm.reward not in (reward, NoReward())))


def _arm(name: str, own: Changes, reward: AnyReward, distillation: Distillation) -> ArmSettings:
    values: dict[str, Any] = {"reward": reward.model_dump(mode="json"), "distillation": distillation.model_dump(mode="json")}
    for path, value in own.items():
        values = placed(values, _checked(name, path), value)
    sections = {path.partition(".")[0] for path in own}
    theirs, schedule = reward, distillation
    try:
        if "reward" in sections:
            theirs = _REWARD.validate_python(values["reward"])
        if "distillation" in sections:
            schedule = Distillation.model_validate(values["distillation"])
        made = {"reward": theirs.model_dump(mode="json"), "distillation": schedule.model_dump(mode="json")}
        refuse_switches_for_numbers(values, made)
    except ValidationError as error:
        raise ValueError(_explained(name, error, values)) from None
    except ValueError as error:
        raise ValueError(f"distillation.arms.{name}: {error}") from None
    return ArmSettings(name, theirs, schedule, "distillation.num_steps" in own)


def _explained(name: str, error: ValidationError, values: Mapping[str, Any]) -> str:
    section = "distillation" if error.title == Distillation.__name__ else "reward"
    return f"distillation.arms.{name}: {explain(error, values, within=(section,))}"


def _checked(name: str, path: str) -> list[str]:
    keys = path.split(".")
    if path == "distillation" or keys[0] not in _CHANGEABLE or ".".join(keys[:2]) in _OF_ALL_ARMS:
        raise ValueError(
            f"distillation.arms.{name} changes {path!r}: an arm may change reward, or a key of reward or distillation, "
            f"but for {' and '.join(_OF_ALL_ARMS)}"
        )
    return keys


def has_reward(arm: ArmSettings) -> bool:
    """Whether a reward guides it."""
    return not isinstance(arm.reward, NoReward)
