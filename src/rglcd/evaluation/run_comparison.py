"""Two runs side by side: what was configured otherwise, and what that did to the pictures, pair by pair.

A pair is the picture of one number by one sampler in both runs: the same prompt, the same noise. Numbers that are of two kinds are not
put side by side but named, with what differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rglcd.errors import InputError
from rglcd.evaluation.comparable_runs import Measured, Run, distance_values, num_scored, paired_captions, same_basis, same_scorers
from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.measurement import TEACHER, Sampler
from rglcd.evaluation.paired_statistics import mean_by_caption, win_rate_by_caption
from rglcd.evaluation.score_tables import OTHER_VALUES, UNASKED_TEXT, ScoreTable
from rglcd.evaluation.verdict import FEW_PROMPTS, Outcome, outcome_of
from rglcd.evaluation.wording import from_two, in_report_order, label_of, listed, steps


@dataclass(frozen=True)
class ValueDifference:
    """Means in A and B, B's less A's with its interval, and how often B's is greater, pair by pair (None: greater is not better)."""

    a: float
    b: float
    difference: Estimate
    wins: Estimate | None
    is_same: bool


@dataclass(frozen=True)
class Unpaired:
    """A number of A and one of B that no pairs give: a distance to the real images, the seconds an image took."""

    a: float
    b: float


@dataclass(frozen=True)
class SamplerDifference:
    """One sampler in both runs. ``values`` are of scorers first; ``seconds`` an image in A and B, if both are known."""

    sampler: Sampler
    values: Mapping[str, ValueDifference]
    distances: Mapping[str, Unpaired]
    seconds: Unpaired | None

    @property
    def label(self) -> str:
        return label_of(self.sampler.who)


@dataclass(frozen=True)
class RunComparison:
    """Everything that can be said of two runs. ``refused`` says what was not compared, and why; ``notes`` what to know of the rest."""

    a: Run
    b: Run
    verdict: str
    settings: tuple[tuple[str, str, str], ...]
    refused: tuple[str, ...]
    notes: tuple[str, ...]
    num_images: int
    captions: tuple[str, ...]
    scorers: tuple[str, ...]
    training_rewards: frozenset[str]
    samplers: tuple[SamplerDifference, ...]
    focus: Sampler

    @property
    def num_captions(self) -> int:
        return len(set(self.captions))


def compare_runs(a: Run, b: Run, *, settings: Sequence[tuple[str, str, str]], seed: int = 0) -> RunComparison:
    """Compare two runs; ``settings`` are the keys that differ, with both values; ``seed`` is that of the resamples.

    Raises :class:`InputError`, naming every reason, where nothing of two runs can be compared.
    """
    shared = [sampler for sampler in a.drawn if sampler in b.measured]
    if not shared:
        names = ", ".join(f"{run.name} has {listed([sampler.name for sampler in run.drawn])}" for run in (a, b))
        raise InputError(f"no sampler is in both runs: {names}")
    captions, unpaired = paired_captions(a, b, shared[0])
    scorers, refused = same_scorers(a, b, shared[0]) if not unpaired else ([], [f"scores: {reason}" for reason in unpaired])
    distances, measured_otherwise = same_basis(a, b, shared) if captions else ({}, [])
    refused += measured_otherwise
    if not scorers and not any(distances.values()):
        raise InputError(f"nothing of {a.name} and {b.name} can be compared: {'; '.join(refused)}")
    samplers = tuple(_difference(a, b, one, captions, scorers, distances[one], seed=seed) for one in shared)
    focus = _focus(shared)
    rewards = frozenset(a.rewards | b.rewards)
    (about,) = (one for one in samplers if one.sampler == focus)
    return RunComparison(
        a=a,
        b=b,
        verdict=_verdict(about, _judges(a, b, focus, [name for name in scorers if name not in rewards] or scorers), len(set(captions))),
        settings=tuple(settings),
        refused=tuple(refused),
        notes=(*_notes(a, b, shared, captions), *_partial(a, b, focus, scorers, len(captions))),
        num_images=len(captions),
        captions=captions,
        scorers=tuple(scorers),
        training_rewards=rewards,
        samplers=samplers,
        focus=focus,
    )


# --- what comes of it ------------------------------------------------------------------------------


def _difference(
    a: Run, b: Run, sampler: Sampler, captions: Sequence[str], scorers: Sequence[str], distances: Sequence[str], *, seed: int
) -> SamplerDifference:
    ours, theirs = a.measured[sampler], b.measured[sampler]
    others = [name for name in OTHER_VALUES if name not in scorers] if scorers else []
    if scorers and UNASKED_TEXT not in scorers and None not in (ours.table.unasked_text, theirs.table.unasked_text):
        others.append(UNASKED_TEXT)
    values = {name: _of_values(ours, theirs, name, captions, is_score=name in scorers, seed=seed) for name in [*scorers, *others]}
    one, other = distance_values(ours.distances), distance_values(theirs.distances)
    seconds = None
    if ours.seconds_per_image is not None and theirs.seconds_per_image is not None:
        seconds = Unpaired(ours.seconds_per_image, theirs.seconds_per_image)
    return SamplerDifference(sampler, values, {name: Unpaired(one[name], other[name]) for name in distances}, seconds)


def _of_values(ours: Measured, theirs: Measured, name: str, captions: Sequence[str], *, is_score: bool, seed: int) -> ValueDifference:
    columns = [_column(one.table, name, is_score=is_score) for one in (ours, theirs)]
    a, b = (torch.tensor(column[: len(captions)], dtype=torch.float64) for column in columns)
    scored = ~(a.isnan() | b.isnan())
    a, b, captions = a[scored], b[scored], [caption for caption, is_scored in zip(captions, scored.tolist(), strict=True) if is_scored]
    wins = win_rate_by_caption(b, a, captions, seed=seed) if is_score else None
    return ValueDifference(a.mean().item(), b.mean().item(), mean_by_caption(b - a, captions, seed=seed), wins, bool((a == b).all()))


def _column(table: ScoreTable, name: str, *, is_score: bool) -> Sequence[float]:
    if not is_score and name == UNASKED_TEXT:
        return table.unasked_text or ()
    return (table.scores if is_score else table.others)[name]


def _focus(shared: Sequence[Sampler]) -> Sampler:
    """What the verdict is about: of the arm that a report is about, two steps or as near as there is; without arms, the teacher."""
    arms = in_report_order(sampler.who for sampler in shared if sampler.who != TEACHER)
    about = arms[-1] if arms else TEACHER
    return min((sampler for sampler in shared if sampler.who == about), key=lambda sampler: from_two(sampler.num_steps))


def _judges(a: Run, b: Run, about: Sampler, names: Sequence[str]) -> Sequence[str]:
    """Of ``names`` those that have a score for every pair, if any has."""
    most = max((num_scored(a, b, about, name) for name in names), default=0)
    return [name for name in names if num_scored(a, b, about, name) == most]


def _verdict(about: SamplerDifference, judges: Sequence[str], num_captions: int) -> str:
    subject = f"{about.label} in {steps(about.sampler.num_steps)}"
    if not judges:
        return f"{subject}: distances alone can be compared"
    if all(about.values[name].is_same for name in judges):
        return f"{subject}: A and B drew the same pictures"
    if num_captions < FEW_PROMPTS:
        return f"{subject}: {num_captions} {'prompt is' if num_captions == 1 else 'prompts are'} too few to tell A from B"
    outcomes = {name: outcome_of(wins) for name in judges if (wins := about.values[name].wins) is not None}
    for_b, for_a = ([name for name in judges if outcomes[name] is wanted] for wanted in (Outcome.BETTER, Outcome.WORSE))
    if for_a and for_b:
        return f"{subject}: {listed(for_b)} {'prefers' if len(for_b) == 1 else 'prefer'} B, {listed(for_a)} A"
    if for_b or for_a:
        return f"{subject}: {'B' if for_b else 'A'} is preferred to {'A' if for_b else 'B'} by {listed(for_b or for_a)}"
    return f"{subject}: A and B cannot be told apart by {listed(judges)}"


def _notes(a: Run, b: Run, shared: Sequence[Sampler], captions: Sequence[str]) -> list[str]:
    notes = []
    for run, which in ((a, "A"), (b, "B")):
        alone = [sampler.name for sampler in run.drawn if sampler not in shared]
        notes += [f"{listed(alone)} {'is' if len(alone) == 1 else 'are'} in {which} alone"] if alone else []
    counts = [len(run.measured[shared[0]].table.captions) for run in (a, b)]
    if captions and counts[0] != counts[1]:
        notes.append(f"A has {counts[0]} pictures and B {counts[1]}: the first {len(captions)} are compared")
    if captions and len(set(captions)) < FEW_PROMPTS:
        notes.append(f"{len(set(captions))} prompts are few: intervals over them are rough")
    return notes


def _partial(a: Run, b: Run, about: Sampler, scorers: Sequence[str], num_pairs: int) -> list[str]:
    counts = {name: num_scored(a, b, about, name) for name in scorers}
    return [f"{name} has scores for {count} of the {num_pairs} pairs alone" for name, count in counts.items() if count < num_pairs]
