"""The figures of a study in words and as JSON."""

from dataclasses import asdict
from typing import Any

from rglcd.evaluation.intervals import Estimate
from rglcd.study.score import RULE, Comparison, Score

FEW = 5
"""Up to so many raters or prompts the percentiles of the bootstrap cover less than they say."""

SIMULATED = "SIMULATED: programs that stand for raters voted; no person was asked"


def as_json(score: Score) -> dict[str, Any]:
    """Every figure, with the rule by which raters were left out."""
    excluded = [one.rater for one in score.excluded]
    annotators = {number + 1: annotator for number, annotator in score.annotators.items()}
    return {**asdict(score), "annotators": annotators, "rule": RULE, "excluded": excluded, "num_unchecked": score.num_unchecked}


def as_text(score: Score) -> str:
    """A table for each question."""
    raters = "simulated raters" if score.simulated else "raters"
    lines = [SIMULATED, ""] if score.simulated else []
    lines += [f"{score.num_votes:,} votes of {score.num_raters} {raters}; {_attention(score)}"]
    if score.annotators:
        who = ", ".join(f"rater {number + 1} is annotator {annotator}" for number, annotator in sorted(score.annotators.items()))
        lines.append(f"from Label Studio: {who}")
    if score.num_simulated_left_out:
        lines.append(f"{score.num_simulated_left_out:,} votes of simulated raters are left out")
    if score.num_contradicting:
        lines.append(f"{score.num_contradicting:,} entries contradicted earlier ones (a second answer to the same task) and do not count")
    for asked in score.asked:
        lines += ["", f"{asked.question}{' (simulated)' if score.simulated else ''}: {asked.num_votes:,} votes"]
        for comparison in asked.comparisons:
            lines += [f"  {line}" for line in _comparison(comparison)]
        if asked.strengths is not None:
            lines.append("  Bradley-Terry strengths (mean 0; a difference of 1 is preferred 73 % of the time)")
            best_first = sorted(asked.strengths.items(), key=lambda item: -item[1].value)
            lines += [f"    {arm:<24} {value.value:+.2f}  [{value.low:+.2f}, {value.high:+.2f}]" for arm, value in best_first]
        lines.append(f"  {_agreement(asked.alpha, asked.num_rated_twice)}")
    lines += ["", *_notes(score)]
    return "\n".join(lines)


def _comparison(one: Comparison) -> list[str]:
    test, more = one.sign_test, one.needed
    votes = f"{one.won} for, {one.lost} against, {one.tied} ties; {one.num_prompts} prompts, {one.num_raters} raters"
    if more.factor > 1:
        wanted = f"{more.votes:,} votes ({more.prompts:,} prompts, {more.raters:,} raters) would give ±{100 * more.half_width:g} %"
    else:
        wanted = f"the interval is within ±{100 * more.half_width:g} % already"
    return [
        f"{one.first} over {one.second}: {_percent(one.win_rate)} ({votes})",
        f"  sign test over prompts: {test.first} for, {test.second} against, {test.even} even, p = {test.p:.2g}; {wanted}",
    ]


def _percent(rate: Estimate) -> str:
    return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _attention(score: Score) -> str:
    if not any(one.answered for one in score.attention):
        return "no attention check was answered"
    failed = [one for one in score.attention if one.passed < one.answered]
    left_out = ", ".join(f"rater {one.rater} ({one.passed} of {one.answered})" for one in score.excluded)
    said = f"{len(failed)} failed a check, {len(score.excluded)} left out{f': {left_out}' if left_out else ''}"
    return f"{said} ({RULE})" + (f"; {score.num_unchecked} answered no check and are kept" if score.num_unchecked else "")


def _agreement(alpha: float | None, num_rated_twice: int) -> str:
    if alpha is None:
        why = f"{num_rated_twice} pairs were rated twice or more, all alike" if num_rated_twice else "no pair was rated twice"
        return f"Krippendorff's alpha: not defined ({why})"
    return f"Krippendorff's alpha: {alpha:.2f} (nominal, {num_rated_twice} pairs rated twice or more; 1 full agreement, 0 chance)"


def _notes(score: Score) -> list[str]:
    notes = ["Intervals: 95 %, prompts and raters drawn anew together (pigeonhole bootstrap, Owen 2007); a tie is half a win."]
    if score.num_raters == 1:
        notes.append("One rater: the intervals are about this rater, and say nothing of others.")
    elif 1 < score.num_raters <= FEW:
        notes.append(f"{score.num_raters} raters are few: the intervals are somewhat too narrow.")
    num_prompts = min((one.num_prompts for asked in score.asked for one in asked.comparisons), default=0)
    if num_prompts == 1:
        notes.append("One prompt: the intervals are about this prompt, and say nothing of others.")
    elif 1 < num_prompts <= FEW:
        notes.append(f"{num_prompts} prompts are few: the intervals are too narrow, however many raters there are.")
    if score.left_share is not None:
        notes.append(f"The left picture was chosen in {100 * score.left_share:.0f} % of the votes that were no tie.")
    if score.median_seconds is not None:
        notes.append(f"An answer took {score.median_seconds:.1f} s in the median.")
    return notes
