"""What is seen of a student while it trains: looks at a few fixed prompts, their record, and when they say that the reward is hacked.

The record is a folder:

    about.json       what is drawn and by whom it is scored, and the same figures of the teacher's pictures
    looks.jsonl      a line for each look, in the order of steps
    teacher.png      the teacher's first picture of each prompt, side by side
    00000050.png     the student's after 50 steps

Shapes: P prompts. Every figure is one number for each prompt: a mean over its pictures, of diversity that between them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from rglcd.store.manifest import LOOKS_FOLDER
from rglcd.store.staging import write_text

FOLDER: Final = LOOKS_FOLDER
"""Of an arm's folder: no digest covers it, so that a student is the same whether or not it was looked at."""

ABOUT, LOOKS, TEACHERS = "about.json", "looks.jsonl", "teacher.png"

SUSPICIOUS_LOOKS: Final = 3
"""In a row, before hacking is suspected."""

WITNESSES: Final = 2
"""Held-out measures that must have fallen."""

_STANDARD_ERRORS: Final = 2.0


@dataclass(frozen=True)
class Figures:
    """Of the panel's pictures, for each prompt: scores by scorer; ``teacher_distance``, the root mean square difference of pixels to
    the teacher's picture of the same noise, 0 to 1; energy of the finest detail; saturation; and diversity, None for one picture a
    prompt."""

    scores: dict[str, list[float]]
    teacher_distance: list[float]
    high_frequency: list[float]
    saturation: list[float]
    diversity: list[float] | None

    def means(self) -> dict[str, float]:
        """The mean over the prompts of each, by name; a scorer keeps its own."""
        others = {"teacher_distance": self.teacher_distance, "high_frequency": self.high_frequency, "saturation": self.saturation}
        others |= {} if self.diversity is None else {"diversity": self.diversity}
        return {name: fmean(values) for name, values in (self.scores | others).items()}


@dataclass(frozen=True)
class Look:
    """What was seen after ``step`` steps of training, ``images`` seen; ``seconds`` is what the look took."""

    step: int
    images: int
    figures: Figures
    seconds: float


@dataclass(frozen=True)
class About:
    """What the looks of one arm are of.

    ``trained_on`` is the scorer that guides the arm, None if none does; ``held_out`` are those that have nothing in common with it.
    ``share`` is the counted part of the run's floating point operations that the panel takes, None where ``every`` was given.
    """

    prompts: tuple[str, ...]
    images_per_prompt: int
    num_steps: int
    teacher_steps: int
    guidance_scale: float
    trained_on: str | None
    held_out: tuple[str, ...]
    every: int
    share: float | None
    teacher: Figures


@dataclass(frozen=True)
class Record:
    """All that was seen of one arm, and the folder that its thumbnails lie in."""

    about: About
    looks: tuple[Look, ...]
    folder: Path

    def thumbnails(self, step: int) -> Path:
        """The strip of pictures of the look after ``step`` steps."""
        return self.folder / strip_name(step)


def strip_name(step: int) -> str:
    """Of the file with the pictures of a look."""
    return f"{step:08d}.png"


def write_about(folder: Path, about: About) -> None:
    """Say in ``folder`` what the looks in it are of."""
    write_text(folder / ABOUT, json.dumps(asdict(about), indent=1, sort_keys=True) + "\n")


def write_looks(folder: Path, looks: Sequence[Look]) -> None:
    """Write all ``looks``, whole or not at all."""
    write_text(folder / LOOKS, "".join(json.dumps(asdict(look), sort_keys=True) + "\n" for look in looks))


def read_looks(folder: Path) -> list[Look]:
    """The looks in ``folder``, in the order of steps; none where there are none."""
    path = folder / LOOKS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [_look(json.loads(line)) for line in lines]


def read_record(folder: Path) -> Record | None:
    """What was seen of the arm whose record ``folder`` is; None where nobody looked."""
    path = folder / ABOUT
    if not path.is_file():
        return None
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    fields |= {"teacher": Figures(**fields["teacher"])} | {name: tuple(fields[name]) for name in ("prompts", "held_out")}
    return Record(About(**fields), tuple(read_looks(folder)), folder)


def _look(fields: dict[str, Any]) -> Look:
    return Look(**fields | {"figures": Figures(**fields["figures"])})


# --- the rule --------------------------------------------------------------------------------------


def suspicion(looks: Sequence[Look], *, trained_on: str | None, held_out: Sequence[str]) -> str | None:
    """Why the last three of ``looks`` say that the student fits its reward and not the prompt; None if they do not.

    The held-out measures are the scores of the ``held_out`` scorers, nearness to the teacher's pictures, and diversity. At a look,
    one of them *testifies* if, beside the earlier look at which its mean was best, it is worse and the trained reward is better,
    both by more than twice the standard error of the difference over the prompts. A look is suspicious if two measures testify;
    hacking is suspected after three suspicious looks in a row.
    """
    if trained_on is None or len(looks) < SUSPICIOUS_LOOKS + 1:
        return None
    witnesses = [_witnesses(looks[: len(looks) - back], trained_on, held_out) for back in range(SUSPICIOUS_LOOKS)]
    if any(len(fallen) < WITNESSES for fallen in witnesses):
        return None
    since = min(step for step, _ in witnesses[0].values())
    fallen = " and ".join(f"{name} is worse than after step {step} ({change})" for name, (step, change) in witnesses[0].items())
    return f"reward hacking suspected: {trained_on} has risen since step {since} and {fallen}, at {SUSPICIOUS_LOOKS} looks in a row"


def _witnesses(looks: Sequence[Look], trained_on: str, held_out: Sequence[str]) -> dict[str, tuple[int, str]]:
    """The measures that testify at the last of ``looks``: the step each was best at, and how it has changed since."""
    now, before, found = looks[-1], looks[:-1], {}
    for name in _measures(now, held_out):
        best = max(before, key=lambda look: fmean(_measures(look, held_out)[name]), default=None)
        if best is None:
            continue
        was, is_now = _measures(best, held_out)[name], _measures(now, held_out)[name]
        if _exceeds(was, is_now) and _exceeds(now.figures.scores[trained_on], best.figures.scores[trained_on]):
            found[name] = (best.step, f"{fmean(was):.4g} to {fmean(is_now):.4g}")
    return found


def _measures(look: Look, held_out: Sequence[str]) -> Mapping[str, list[float]]:
    """The held-out measures by name, greater being better."""
    figures = look.figures
    nearness = {"nearness to the teacher": [-value for value in figures.teacher_distance]}
    diversity = {} if figures.diversity is None else {"diversity": figures.diversity}
    return {name: figures.scores[name] for name in held_out} | nearness | diversity


def _exceeds(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether ``values`` (P,) are greater than ``others``, prompt by prompt, by more than chance would have it."""
    differences = [a - b for a, b in zip(values, others, strict=True)]
    error = stdev(differences) / math.sqrt(len(differences))
    return fmean(differences) > max(0.0, _STANDARD_ERRORS * error)
