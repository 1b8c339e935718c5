"""The verdict of a comparison, in sentences: computed, never written by hand.

A side wins only by an interval that excludes a tie, on enough pictures, by scorers that the student was not trained on.
"""

import math
from enum import StrEnum
from typing import Final

from rglcd.evaluation.comparison import Comparison, Summary
from rglcd.evaluation.intervals import Estimate, Z
from rglcd.evaluation.measurement import TEACHER
from rglcd.evaluation.wording import PLAIN_ARM, in_words, interval_percent, label_of, listed, percent

LEAST_PICTURES: Final = 30
"""With fewer no verdict is given at all, a convention: only wins on more than 68 % would count, and a prompt or two make those."""

FEW_PROMPTS: Final = 10
"""Resampling fewer says little of how far an interval reaches, however many pictures each has: no verdict is made of it."""

_TELLING: Final = 0.6
"""The win rate that enough pictures tell from a tie: preferred on three pictures of five."""

_Z_POWER: Final = 0.841621
"""Normal quantile of a power of four times in five."""


class Outcome(StrEnum):
    """What the interval of a win rate allows one to conclude."""

    BETTER = "better"
    UNDECIDED = "undecided"
    WORSE = "worse"


def pictures_to_tell(rate: float) -> int:
    """How many pictures tell a true win rate of ``rate`` in [0, 1] from a tie, with 95 % confidence, four times in five.

    The usual size of a sample for one proportion against one half (Fleiss, Statistical Methods for Rates and Proportions, section
    2.2), rounded up to two digits. Raises :class:`ValueError` for one half, which no number of pictures tells from itself.
    """
    if rate == 0.5:
        raise ValueError("no number of pictures tells a tie from a tie")
    size = ((Z * 0.5 + _Z_POWER * math.sqrt(rate * (1 - rate))) / (rate - 0.5)) ** 2
    unit: int = 10 ** max(math.floor(math.log10(size)) - 1, 0)
    return math.ceil(size / unit) * unit


def outcome_of(rate: Estimate) -> Outcome:
    """Better or worse only if the whole interval is on that side of a tie."""
    if rate.low > 0.5:
        return Outcome.BETTER
    return Outcome.WORSE if rate.high < 0.5 else Outcome.UNDECIDED


def verdict(comparison: Comparison) -> str:
    """One sentence: the guided student in few steps against the teacher in many.

    Where the pictures are too few to tell a win rate of 60 % from a tie, nobody is called equal: it says how many it would take.
    """
    focus = comparison.focus
    is_one = focus.sampler.num_steps == 1
    student = f"{in_words(focus.sampler.num_steps).capitalize()} {'step' if is_one else 'steps'} of {label_of(focus.sampler.who)}"
    teacher = f"the teacher’s {in_words(comparison.teacher.sampler.num_steps)}"
    by = {outcome: [n for n in comparison.judges if _outcome(focus, n) is outcome] for outcome in Outcome}
    enough = pictures_to_tell(_TELLING)
    num_images, num_prompts = _num_judged(comparison)
    is_decided = bool(by[Outcome.BETTER] or by[Outcome.WORSE])
    if num_images < LEAST_PICTURES or (num_images < enough and not is_decided):
        scored = "" if num_images == comparison.num_images else "scored "
        count = f"{num_images} {scored}{'picture is' if num_images == 1 else 'pictures are'} too few"
        return f"{count} to tell {student[0].lower()}{student[1:]} from {teacher}; about {enough} would do."
    if num_prompts < FEW_PROMPTS:
        count = f"{num_prompts} {'prompt is' if num_prompts == 1 else 'prompts are'} too few"
        return f"{count} to tell {student[0].lower()}{student[1:]} from {teacher}, however many pictures each has."
    if not by[Outcome.WORSE] and not by[Outcome.UNDECIDED]:
        return f"{student} {'is' if is_one else 'are'} preferred to {teacher}, by {listed(by[Outcome.BETTER])}."
    if not by[Outcome.BETTER] and not by[Outcome.WORSE]:
        return f"{student} and {teacher} cannot be told apart by {listed(by[Outcome.UNDECIDED])}."
    if not by[Outcome.BETTER] and not by[Outcome.UNDECIDED]:
        return f"{student} {'does' if is_one else 'do'} not reach {teacher} yet, says {listed(by[Outcome.WORSE])}."
    parts = []
    if by[Outcome.BETTER]:
        parts.append(f"preferred by {listed(by[Outcome.BETTER])}")
    if by[Outcome.UNDECIDED]:
        few = "" if num_images >= enough else f" (on {num_images} pictures; about {enough} would do)"
        parts.append(f"not told apart by {listed(by[Outcome.UNDECIDED])}{few}")
    if by[Outcome.WORSE]:
        parts.append(f"rated lower by {listed(by[Outcome.WORSE])}")
    return f"{student} against {teacher}: {', '.join(parts)}."


def findings(comparison: Comparison) -> list[str]:
    """The sentences under the verdict: against the plain arm, and warnings that the numbers call for."""
    focus = comparison.focus
    sentences = []
    against_plain = {n: focus.scores[n].win_rates[PLAIN_ARM] for n in comparison.judges if PLAIN_ARM in focus.scores[n].win_rates}
    if against_plain:
        rates = ", ".join(f"{percent(rate.value)} by {name} ({interval_percent(rate)})" for name, rate in against_plain.items())
        sentences.append(f"Against the plain LCM in as many steps it wins {rates}.")
    sentences += _pictures_needed(comparison)
    if comparison.frechet_has_too_few_images:
        sentences.append(_singular(comparison))
    sentences += _unasked_text(comparison)
    if comparison.trained_on is None:
        sentences.append("No reward guided the students of this run.")
    elif comparison.scorers == [comparison.trained_on]:
        sentences.append(f"The only scorer, {comparison.trained_on}, is the training reward: it cannot tell quality from flattery.")
    elif comparison.has_only_the_training_reward:
        sentences.append(
            f"No scorer is held out: each of {listed(comparison.scorers)} is the training reward, {comparison.trained_on}, or has weights "
            f"or parts of it, and cannot tell quality from flattery."
        )
    elif comparison.trained_on in comparison.scorers and _outcome(focus, comparison.trained_on) is Outcome.BETTER:
        losing = [name for name in comparison.judges if _outcome(focus, name) is Outcome.WORSE]
        if losing and _is_enough(comparison):
            sentences.append(
                f"Signs of over-optimisation: {comparison.trained_on}, the reward it was trained on, prefers the student "
                f"while {listed(losing)} {'prefers' if len(losing) == 1 else 'prefer'} the teacher."
            )
    return sentences


def _unasked_text(comparison: Comparison) -> list[str]:
    """The alarm: the student paints more words into its pictures than the teacher, by more than chance would have it."""
    ours, theirs, beyond = comparison.focus.unasked_text, comparison.teacher.unasked_text, comparison.focus.unasked_beyond_teacher
    if ours is None or theirs is None or beyond is None or beyond.low <= 0:
        return []
    if comparison.num_images < LEAST_PICTURES or comparison.num_prompts < FEW_PROMPTS:
        return []
    return [
        f"Words are painted into pictures: {percent(ours.value)} of the student’s hold text that their prompts do not quote "
        f"({interval_percent(ours)}), {percent(theirs.value)} of the teacher’s."
    ]


def _pictures_needed(comparison: Comparison) -> list[str]:
    """For each judge that tells nobody apart: how many pictures its win rate would take, if it stays as it is."""
    if not _is_enough(comparison):  # so few say nothing of the rate either
        return []
    undecided = [name for name in comparison.judges if _outcome(comparison.focus, name) is Outcome.UNDECIDED]
    rates = {name: comparison.focus.scores[name].win_rates[TEACHER].value for name in undecided}
    needed = {name: pictures_to_tell(rate) for name, rate in rates.items() if rate != 0.5}
    return [
        f"To tell its {percent(rates[name])} by {name} from a tie would take about {count:,} pictures." for name, count in needed.items()
    ]


def _singular(comparison: Comparison) -> str:
    counts = f"{comparison.num_images} pictures and {comparison.num_reference} real images"
    return (
        f"The Fréchet distances mean nothing here: {counts} have features of {comparison.num_features} numbers each, and a covariance "
        f"needs more images than that."
    )


def _num_judged(comparison: Comparison) -> tuple[int, int]:
    """Pictures and prompts that some judge has scores for: not all, where each is silent on some prompts."""
    scores = [comparison.focus.scores[name] for name in comparison.judges]
    return max(score.num_images for score in scores), max(score.num_prompts for score in scores)


def _is_enough(comparison: Comparison) -> bool:
    """Whether there is enough to say anything of the student beside the teacher."""
    num_images, num_prompts = _num_judged(comparison)
    return num_images >= LEAST_PICTURES and num_prompts >= FEW_PROMPTS


def _outcome(summary: Summary, scorer: str) -> Outcome:
    return outcome_of(summary.scores[scorer].win_rates[TEACHER])
