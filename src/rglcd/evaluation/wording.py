"""Names of models and numbers as the report writes them."""

import re
from collections.abc import Iterable, Sequence

from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.measurement import REAL, TEACHER

PLAIN_ARM = "lcm"
"""The arm trained without a reward: guided arms are compared with it, as well as with the teacher."""

GUIDED_ARM = "rg"
"""The arm as the reward section says: where there is one, the report is about it; else about the last by name."""

LRM = "lrm"
"""The latent reward model: not an arm, but its training is plotted as theirs is."""

_LABELS = {REAL: "Real images", TEACHER: "Teacher", PLAIN_ARM: "LCM", GUIDED_ARM: "RG-LCM", LRM: "LRM"}

_NUMERALS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 10: "ten", 20: "twenty", 50: "fifty"}


def label_of(who: str) -> str:
    """The name of a model as readers know it; an arm of another name keeps its own."""
    return _LABELS.get(who, who)


def in_report_order(arms: Iterable[str]) -> list[str]:
    """The arms, each once: the plain one first, then by name, and last the one that the report is about."""
    return sorted(set(arms), key=lambda arm: (arm != PLAIN_ARM, arm == GUIDED_ARM, arm))


def from_two(num_steps: int) -> int:
    """How far ``num_steps`` are from two: a report is about two steps, or as near as there is."""
    return abs(num_steps - 2)


def css_class(who: str) -> str:
    """The CSS class that colours a model. An arm is named by a folder: what no class name may hold becomes a dash."""
    return f"arm-{re.sub(r'[^A-Za-z0-9_-]', '-', who)}"


def in_words(count: int) -> str:
    """Small counts as words."""
    return _NUMERALS.get(count, str(count))


def steps(count: int) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count} {'step' if count == 1 else 'steps'}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def percent(value: float) -> str:
    """A share without decimals."""
    return f"{100 * value:.0f} %"


def interval_percent(rate: Estimate) -> str:
    """An interval of shares."""
    return f"{100 * rate.low:.0f}–{100 * rate.high:.0f} %"


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them, three digits at most."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
