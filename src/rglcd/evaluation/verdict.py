"""The verdict of a comparison, in sentences: computed, never written by hand.

A side wins only by an interval that excludes a tie, on scorers that the student was not trained on.
"""

from enum import StrEnum

from rglcd.evaluation.comparison import Comparison, Summary
from rglcd.evaluation.measurement import TEACHER
from rglcd.evaluation.statistics import Estimate
from rglcd.evaluation.wording import PLAIN_ARM, in_words, interval_percent, label_of, listed, percent


class Outcome(StrEnum):
    """What the interval of a win rate allows one to conclude."""

    BETTER = "better"
    UNDECIDED = "undecided"
    WORSE = "worse"


def outcome_of(rate: Estimate) -> Outcome:
    """Better or worse only if the whole interval is on that side of a tie."""
    if rate.low > 0.5:
        return Outcome.BETTER
    return Outcome.WORSE if rate.high < 0.5 else Outcome.UNDECIDED


def verdict(comparison: Comparison) -> str:
    """One sentence: the guided student in few steps against the teacher in many."""
    focus = comparison.focus
    is_one = focus.sampler.num_steps == 1
    student = f"{in_words(focus.sampler.num_steps).capitalize()} {'step' if is_one else 'steps'} of {label_of(focus.sampler.who)}"
    teacher = f"the teacher’s {in_words(comparison.teacher.sampler.num_steps)}"
    by = {outcome: [n for n in comparison.judges if _outcome(focus, n) is outcome] for outcome in Outcome}
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
        parts.append(f"not told apart by {listed(by[Outcome.UNDECIDED])}")
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
    if comparison.trained_on is None:
        sentences.append("No reward guided the students of this run.")
    elif comparison.has_only_the_training_reward:
        sentences.append(f"The only scorer, {comparison.trained_on}, is the training reward: it cannot tell quality from flattery.")
    elif comparison.trained_on in comparison.scorers and _outcome(focus, comparison.trained_on) is Outcome.BETTER:
        losing = [name for name in comparison.judges if _outcome(focus, name) is Outcome.WORSE]
        if losing:
            sentences.append(
                f"Signs of over-optimisation: {comparison.trained_on}, the reward it was trained on, prefers the student "
                f"while {listed(losing)} {'prefers' if len(losing) == 1 else 'prefer'} the teacher."
            )
    return sentences


def _outcome(summary: Summary, scorer: str) -> Outcome:
    return outcome_of(summary.scores[scorer].win_rates[TEACHER])
