"""What came out of a study: votes joined with the key, careless raters left out by a written rule, and the figures of each question."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from rglcd.errors import InputError
from rglcd.evaluation.intervals import Estimate
from rglcd.study.assignment import Task, every_task, tasks_of
from rglcd.study.ballots import Vote
from rglcd.study.label_studio_answers import export_raters, is_export, read_exports
from rglcd.study.raters import Rater, read_raters
from rglcd.study.records import Answer, Key, Question, Study, read_key, read_study
from rglcd.study.returned import counted, read_returned
from rglcd.study.statistics import Needed, SignTest, Votes, bradley_terry, krippendorff_alpha, needed, sign_test, win_rate
from rglcd.study.vote_log import VOTES, read_log

PASS_MARK: Final = 0.8
RULE: Final = f"a rater is left out who chose the whole picture in fewer than {PASS_MARK:.0%} of the attention checks answered"
"""Written before any vote; a tie is no choice of the whole picture, and who answered no check is kept, and counted separately."""


@dataclass(frozen=True)
class Attention:
    """How a rater (by number, from 1) did in the checks, and whether the votes are left out."""

    rater: int
    passed: int
    answered: int

    @property
    def is_excluded(self) -> bool:
        return self.answered > 0 and self.passed < PASS_MARK * self.answered


@dataclass(frozen=True)
class Comparison:
    """Two arms under one question: votes for each, ties, and what follows. The win rate is the first arm's, a tie half a win."""

    first: str
    second: str
    won: int
    lost: int
    tied: int
    num_prompts: int
    num_raters: int
    win_rate: Estimate
    sign_test: SignTest
    needed: Needed


@dataclass(frozen=True)
class Asked:
    """The figures of one question. ``strengths`` only for more than two arms; ``alpha`` None where nothing was rated twice."""

    question: Question
    num_votes: int
    comparisons: tuple[Comparison, ...]
    strengths: Mapping[str, Estimate] | None
    alpha: float | None
    num_rated_twice: int


@dataclass(frozen=True)
class Score:
    """All figures of a study. ``simulated``: programs voted, no person did; beside people's votes those of programs are left out.

    ``annotators``: the raters (by number, from 0) that answered in Label Studio, and their numbers there.
    """

    study: str
    arms: tuple[str, ...]
    simulated: bool
    num_simulated_left_out: int
    attention: tuple[Attention, ...]
    num_raters: int
    num_votes: int
    asked: tuple[Asked, ...]
    left_share: float | None
    median_seconds: float | None
    num_contradicting: int
    num_torn_lines: int
    annotators: Mapping[int, int]

    @property
    def excluded(self) -> list[Attention]:
        """The raters who are left out."""
        return [one for one in self.attention if one.is_excluded]

    @property
    def num_unchecked(self) -> int:
        """Raters who answered no check, and are kept."""
        return sum(one.answered == 0 for one in self.attention)


@dataclass(frozen=True)
class _Cast:
    """A vote with what was asked."""

    vote: Vote
    task: Task

    @property
    def chosen(self) -> str | None:
        """The picture, None for a tie."""
        return {Answer.LEFT: self.task.left, Answer.RIGHT: self.task.right, Answer.TIE: None}[self.vote.answer]

    @property
    def share(self) -> float:
        """Of the pair's first picture: 1, 0, or 1/2 of a tie."""
        return 0.5 if self.vote.answer is Answer.TIE else float(self.is_left == (self.vote.answer is Answer.LEFT))

    @property
    def is_left(self) -> bool:
        """Whether the pair's first picture stood on the left."""
        return self.task.left == self.task.pair.pictures[0]


def score(folder: Path, returned: Sequence[Path], *, half_width: float, seed: int) -> Score:
    """The figures of the study in ``folder``: of its own votes and of the files that were sent back.

    ``half_width``: of the interval for which the votes needed are counted. ``seed``: of the resamples.
    Raises :class:`InputError` for files that are not the study's, and where nobody has voted.
    """
    study, key, raters = read_study(folder), read_key(folder), read_raters(folder)
    log = read_log(folder / VOTES, raters)
    tasks = {rater.number: {task.id: task for task in tasks_of(study, rater.number)} for rater in raters}
    exports = [path for path in returned if is_export(path)]
    sent_back = [entry for path in returned if path not in exports for entry in read_returned(path, study, raters)]
    elsewhere, annotators = read_exports(exports, study, first_rater=len(raters))
    sent_back += elsewhere
    raters += export_raters(annotators)
    tasks |= {number: {task.id: task for task in every_task(study)} for number in annotators}
    votes, num_contradicting = counted(log.entries, sent_back, {number: set(known) for number, known in tasks.items()})
    cast = [_Cast(vote, tasks[vote.rater][vote.task]) for vote in votes]
    if not cast:
        raise InputError(f"{folder}: nobody has voted yet; run: rglcd ab serve {folder}")
    people = [one for one in cast if not raters[one.vote.rater].simulated]
    counts = people or cast
    attention = _attention(counts, study, key, raters)
    kept = _kept(counts, attention, study)
    return Score(
        study=study.id,
        arms=key.arms,
        simulated=not people,
        num_simulated_left_out=len(cast) - len(counts),
        attention=attention,
        num_raters=len({one.vote.rater for one in kept}),
        num_votes=len(kept),
        asked=tuple(_asked(question, kept, key, half_width=half_width, seed=seed) for question in study.questions),
        left_share=_mean([float(one.vote.answer is Answer.LEFT) for one in kept if one.vote.answer is not Answer.TIE]),
        median_seconds=_median([one.vote.milliseconds / 1000 for one in kept if one.vote.milliseconds is not None]),
        num_contradicting=num_contradicting,
        num_torn_lines=log.num_torn,
        annotators=annotators,
    )


def _attention(cast: Sequence[_Cast], study: Study, key: Key, raters: Sequence[Rater]) -> tuple[Attention, ...]:
    checks = {check.id for check in study.checks}
    passed, answered = defaultdict[int, int](int), defaultdict[int, int](int)
    for one in cast:
        if one.task.pair.id in checks:
            answered[one.vote.rater] += 1
            passed[one.vote.rater] += one.chosen == one.task.pair.pictures[key.whole[one.task.pair.id]]
    voted = {one.vote.rater for one in cast}
    return tuple(Attention(r.number + 1, passed[r.number], answered[r.number]) for r in raters if r.number in voted)


def _kept(cast: Sequence[_Cast], attention: Sequence[Attention], study: Study) -> list[_Cast]:
    """The votes on pairs of arms, of raters who are not left out."""
    checks = {check.id for check in study.checks}
    excluded = {one.rater - 1 for one in attention if one.is_excluded}
    return [one for one in cast if one.vote.rater not in excluded and one.task.pair.id not in checks]


def _asked(question: Question, kept: Sequence[_Cast], key: Key, *, half_width: float, seed: int) -> Asked:
    cast = [one for one in kept if one.task.question is question]
    votes = _as_votes(cast, key)
    numbers = {arm: number for number, arm in enumerate(key.arms)}
    comparisons, pairs = [], list(combinations(key.arms, 2))
    for first, second in pairs:
        is_theirs = (votes.first == numbers[first]) & (votes.second == numbers[second])
        if is_theirs.any():
            theirs = Votes(*(values[is_theirs] for values in (votes.prompt, votes.rater, votes.first, votes.second, votes.share)))
            comparisons.append(_compared(first, second, theirs, half_width=half_width, seed=seed))
    strengths = bradley_terry(votes, len(key.arms), seed=seed) if len(key.arms) > 2 and len(comparisons) == len(pairs) else None
    units = defaultdict[str, list[float]](list)
    for one in cast:
        units[one.task.id].append(one.share)
    return Asked(
        question=question,
        num_votes=len(cast),
        comparisons=tuple(comparisons),
        strengths=None if strengths is None else dict(zip(key.arms, strengths, strict=True)),
        alpha=krippendorff_alpha(units.values()),
        num_rated_twice=sum(len(values) > 1 for values in units.values()),
    )


def _compared(first: str, second: str, votes: Votes, *, half_width: float, seed: int) -> Comparison:
    rate = win_rate(votes, seed=seed)
    return Comparison(
        first=first,
        second=second,
        won=int((votes.share == 1).sum()),
        lost=int((votes.share == 0).sum()),
        tied=int((votes.share == 0.5).sum()),
        num_prompts=votes.num_prompts,
        num_raters=votes.num_raters,
        win_rate=rate,
        sign_test=sign_test(votes),
        needed=needed(rate, votes, half_width=half_width),
    )


def _as_votes(cast: Sequence[_Cast], key: Key) -> Votes:
    """By number; the pairs of a prompt share its number, so that they are drawn together."""
    arms = {arm: number for number, arm in enumerate(key.arms)}
    prompts: dict[str, int] = {}
    prompt = [prompts.setdefault(one.task.pair.prompt, len(prompts)) for one in cast]
    drawn_by = [key.drawn_by[one.task.pair.id] for one in cast]
    return Votes(
        prompt=np.array(prompt, dtype=np.int64),
        rater=np.array([one.vote.rater for one in cast], dtype=np.int64),
        first=np.array([arms[first] for first, _ in drawn_by], dtype=np.int64),
        second=np.array([arms[second] for _, second in drawn_by], dtype=np.int64),
        share=np.array([one.share for one in cast], dtype=np.float64),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
